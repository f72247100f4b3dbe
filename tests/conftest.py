"""One thread, so that results do not depend on the number of cores, and a working Ctrl-C."""

import signal

import torch

torch.set_num_threads(1)
# Started in the background, the tests inherit an ignored SIGINT, and so would the scripts they run.
signal.signal(signal.SIGINT, signal.default_int_handler)
