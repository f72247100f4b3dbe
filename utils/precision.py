"""Half precision in training and in files; memory order and reuse, for faster training steps."""

import contextlib
import ctypes
import sys

import torch
from torch.overrides import TorchFunctionMode

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
# Values: smaller tensors stay in single precision in files, which costs MobileNetV1 0.3 MB. A
# depthwise kernel has 9 values for each channel, so their rounding errors do not average out:
# with all tensors in half precision, MobileNetV1's ages move by up to 0.17 years. In an .onnx
# file, whose kernels have batch normalisation folded in first, they move by up to 0.08 years if
# tensors of fewer than 10,000 values are spared, and by 0.04 if those of fewer than 40,000 are.
MIN_HALVED = 40_000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# Bytes: larger blocks are given back at once. Tried in turn: older versions of glibc refuse more
# than 32 MiB.
MMAP_THRESHOLDS = (2 ** 30, 2 ** 25)


@contextlib.contextmanager
def autocast(device, amp):
    """Context for the forward pass.

    Args:
        device: torch.device.
        amp: bf16 | fp16 | off, which is full precision.
    """
    if AUTOCAST[amp] is None:
        yield
        return
    depthwise = FullPrecisionDepthwise() if device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, AUTOCAST[amp]), depthwise:
        yield


class FullPrecisionDepthwise(TorchFunctionMode):
    """Keeps depthwise convolutions in fp32 inside autocast on a CPU.

    Their backward pass in half precision takes several times as long on a CPU. All other layers
    of such a network gain from half precision.
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
    """The model with its kernels in the fastest memory order for the precision.

    Pixels are always channels-last. Convolutions in half precision are faster if their kernels
    are channels-last too.
    """
    return model if amp == "off" else model.to(memory_format=torch.channels_last)


def keep_freed_memory(device):
    """Let the C library keep the memory that a step on the CPU frees, for the next; Linux only.

    By default glibc gives every large block back to the system at once, and the next step waits
    for page faults: a tenth of its time for an EfficientNet-Lite0 at 128 px.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    # Without the first setting the second would make glibc give back every block.
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS):
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
