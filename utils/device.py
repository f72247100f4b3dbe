"""Where networks run: found out without PyTorch where there is no GPU."""

import ctypes
import importlib.util
import re
from pathlib import Path

DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")
CUDA_DRIVERS = ("libcuda.so.1", "nvcuda.dll")  # on Linux and on Windows
ROCM_DEVICE = Path("/dev/kfd")  # of AMD's driver, whose GPUs PyTorch calls cuda as well


def device_name(asked="auto"):
    """Name of the device that `--device` means, such as "cpu" or "cuda:1".

    PyTorch, whose import takes seconds, is loaded only if it may have a GPU to use.

    Args:
        asked: auto (a GPU of CUDA if there is one), cpu, cuda, cuda:N or mps.
    Raises:
        ValueError: another name, not a string, or there is no such device.
        OSError: a GPU is asked for, but PyTorch is not installed.
    """
    if asked == "auto":
        return "cuda" if _has_torch() and _may_have_cuda() and _torch_has("cuda") else "cpu"
    if not isinstance(asked, str) or not DEVICE.fullmatch(asked):
        raise ValueError(f"unknown device {asked!r}; choose auto, cpu, cuda, cuda:N or mps")
    if asked == "cpu":
        return asked
    if not _has_torch():
        raise OSError(f"--device {asked} needs PyTorch, which is not installed; install it with: "
                      "pip install -r requirements.txt")
    if not _torch_has(asked):
        raise ValueError(f"--device {asked}: no such device found; use --device cpu")
    return asked


def _has_torch():
    return importlib.util.find_spec("torch") is not None


def _may_have_cuda():
    return ROCM_DEVICE.exists() or any(_gpu_count(library) for library in CUDA_DRIVERS)


def _gpu_count(library):
    """GPUs that CUDA's driver knows and CUDA_VISIBLE_DEVICES lets through; 0 without a driver."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if ready else 0


def _torch_has(name):
    import torch
    kind, _, number = name.partition(":")
    if kind == "mps":
        return torch.backends.mps.is_available()
    return torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
