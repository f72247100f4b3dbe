"""What every test process needs: one thread, a working Ctrl-C, no GPU.

`make test` starts one process for each core. With one thread in each, and in each script that a
test starts, they do not wait for one another, and no result depends on the number of cores.
"""

import os
import signal
import subprocess

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
# If the tests run in the background, SIGINT is ignored, also by the scripts that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if config.option.markexpr != "gpu":  # -m gpu runs the tests for one
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
