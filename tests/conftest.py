"""One thread, so that results do not depend on the number of cores, and a working Ctrl-C.

No GPU either, unless the tests for one are asked for with -m gpu.
"""

import os
import signal
import subprocess

import pytest
import torch

torch.set_num_threads(1)
# Started in the background, the tests inherit an ignored SIGINT, and so would the scripts they run.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
