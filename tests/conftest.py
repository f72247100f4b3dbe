"""What every test process needs: one thread, a working Ctrl-C, no GPU; and fixtures of many tests.

`make test` starts one process for each core. With one thread in each, and in each script that a
test starts, they do not wait for one another, and no result depends on the number of cores.
"""

import os
import signal
import subprocess

import numpy as np
import pytest

# What imports torch is imported in the fixtures: the number of threads must be set before.
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
# If the tests run in the background, SIGINT is ignored, also by the scripts that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    if config.option.markexpr != "gpu":  # -m gpu runs the tests for one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used


@pytest.fixture
def take_for_real(monkeypatch):
    """Function (source, path) -> path: the file's checksum is now that of the source's package."""
    def take(source, path):
        from networks.face_weights import PACKAGES
        from utils.files import file_sha256
        monkeypatch.setitem(PACKAGES, source, PACKAGES[source]._replace(sha256=file_sha256(path)))
        return path
    return take


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data set of eight drawn faces, see scripts.draw_ages(). Tests do not change it."""
    from scripts import draw_ages
    return draw_ages(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def trained(folder, tmp_path_factory):
    """best.pth of one epoch on `folder`. Tests do not change it."""
    from faces import TINY
    from scripts import train
    run = tmp_path_factory.mktemp("trained") / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "1")
    return run / "best.pth"


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """Checkpoint of a small network with fixed random weights."""
    from demo_inputs import write_model
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


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
