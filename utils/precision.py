"""How a training step is computed fastest: mixed precision, memory order, memory kept."""

import contextlib
import ctypes
import sys

import torch
from torch.overrides import TorchFunctionMode

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = (2 ** 30, 2 ** 25)  # bytes of a block that is kept, the first that is accepted


@contextlib.contextmanager
def autocast(device, amp):
    """Context in which the forward pass runs in bf16, fp16 or, with off, full precision."""
    if AUTOCAST[amp] is None:
        yield
        return
    spared = FullPrecisionDepthwise() if device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, AUTOCAST[amp]), spared:
        yield


class FullPrecisionDepthwise(TorchFunctionMode):
    """Inside autocast on a CPU, depthwise convolutions stay in fp32.

    Their half-precision backward pass takes several times as long there; all other layers of such
    a network gain from half precision.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and len(args) > 1 and _is_depthwise(*args[:2]):
            images, *others = args
            with torch.autocast("cpu", enabled=False):
                return func(images.float(), *others, **kwargs or {}).to(images.dtype)
        return func(*args, **kwargs or {})


def _is_depthwise(images, kernels):
    return kernels.shape[1] == 1 < images.shape[1]


def arranged(model, amp):
    """The model with its kernels in the memory order that is fastest for the precision.

    Pixels always come channels-last; half-precision convolutions want their kernels so too.
    """
    return model if amp == "off" else model.to(memory_format=torch.channels_last)


def keep_freed_memory(device):
    """Let the C library keep what a step on the CPU frees, for the next one; on Linux only.

    Otherwise glibc gives every large block back at once, and the next step waits for the page
    faults of the same memory; a tenth of its time for an EfficientNet-Lite0 at 128 px.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    # Older ones refuse more than 32 MiB. Where both were refused, the second setting alone would
    # have every block given back.
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT):
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
