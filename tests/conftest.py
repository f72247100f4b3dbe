"""One thread, so that results do not depend on the number of cores, and a working Ctrl-C.

No GPU either, unless the tests for one are asked for with -m gpu.
"""

import os
import signal

import torch

torch.set_num_threads(1)
# Started in the background, the tests inherit an ignored SIGINT, and so would the scripts they run.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used
