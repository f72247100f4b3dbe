"""Networks made fast for predicting: through OpenVINO on a CPU that has it, else in PyTorch."""

import copy
import threading
import warnings
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

try:
    import openvino
except ImportError:  # the same networks then run in PyTorch, at about half the speed
    openvino = None

LARGEST_CHUNK = 64  # inputs that OpenVINO gets at once


def fast_model(model, image_size, device):
    """The fastest way at hand to compute what an age network computes.

    Args:
        model: AgeModel in eval mode, on the device.
        image_size: pixels, side of its input.
        device: torch.device.
    Returns:
        Function, (B, 3, S, S) uint8 pixels on the device -> (B, K) float32 logits there. On a
        CPU it keeps to the threads that PyTorch has when it is made.
    """
    compiled = _compiled(model, image_size) if device.type == "cpu" else None
    return compiled or fuse_batch_norms(model, image_size, device)


def _compiled(model, image_size):
    """The model through OpenVINO, or None where that is missing or cannot do this network."""
    if openvino is None:
        return None
    pixels = _noise(image_size)
    try:
        network = OpenVinoNetwork(model, pixels, torch.get_num_threads(), (-1, *pixels.shape[1:]))
    except Exception:  # of many kinds, for an operator that OpenVINO does not know
        return None

    def logits_of(pixels):
        return torch.from_numpy(network(pixels.contiguous().numpy())[0])

    with torch.no_grad():
        return logits_of if _same(logits_of(pixels), model(pixels)) else None


@cache
def _core():
    """OpenVINO's core, one for the life of the process.

    With a core for each network, processes that released some ended in a segmentation fault some
    time later (openvino 2026.4.1); with this one, so far none has.
    """
    return openvino.Core()


class OpenVinoNetwork:
    """A network compiled by OpenVINO: from an array to the list of its outputs' arrays.

    Args:
        network: nn.Module in eval mode, on the CPU.
        example: (B, ...) tensor that it takes.
        threads: CPU threads.
        shape: of the input, with -1 where it varies; by default any.
    """

    def __init__(self, network, example, threads, shape=None):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's about tracing
            # Traced here: OpenVINO has the trace checked, which takes most of the time.
            traced = torch.jit.trace(network, example, check_trace=False)
            model = openvino.convert_model(traced, example_input=example,
                                           input=None if shape is None else [shape])
        self.request = _core().compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # bf16, its default on some CPUs, moves results
            "ENABLE_CPU_PINNING": False,  # several processes would share one core
        }).create_infer_request()
        self.output_count = len(model.outputs)
        self.lock = threading.Lock()  # a request does one thing at a time

    def __call__(self, images):
        if not len(images):
            one = np.zeros((1, *images.shape[1:]), images.dtype)
            return [output[:0] for output in self(one)]
        parts, done = [], 0
        while done < len(images):
            # Powers of two: a new shape is compiled first, in milliseconds.
            count = min(LARGEST_CHUNK, 1 << (len(images) - done).bit_length() - 1)
            with self.lock:
                result = self.request.infer({0: images[done:done + count]}, share_inputs=True)
            parts.append([result[index] for index in range(self.output_count)])
            done += count
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def fuse_batch_norms(model, image_size, device):
    """A copy of a network with each batch norm folded into the convolution before it.

    Which convolution that is, is seen on a picture that goes through. The copy computes the same
    up to rounding and is a fifth faster at batch 1; where it does not, it is not used: the
    network itself is returned.

    Args:
        model: AgeModel in eval mode.
        image_size: pixels.
        device: of the model.
    """
    fused = copy.deepcopy(model)
    pixels = _noise(image_size).to(device)
    names = {module: name for name, module in fused.named_modules()}
    with torch.no_grad():
        for conv, norm in _conv_norm_pairs(fused, pixels):
            folded = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = folded.weight, folded.bias
            # timm's norms carry the activation that follows.
            fused.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
        chosen = fused if _same(fused(pixels), model(pixels)) else model
    return chosen.to(memory_format=torch.channels_last)


def _conv_norm_pairs(model, pixels):
    """(convolution, batch norm) where the norm's input is the convolution's output, untouched."""
    outputs, pairs, hooks = {}, [], []

    def after_conv(conv, _, output):
        outputs[id(output)] = conv, output, output._version

    def before_norm(norm, inputs):
        conv, output, version = outputs.get(id(inputs[0]), (None, None, None))
        if conv is not None and output._version == version:
            pairs.append((conv, norm))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    model(pixels)
    for hook in hooks:
        hook.remove()
    return pairs


def _noise(image_size):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, image_size, image_size), generator=generator,
                         dtype=torch.uint8)


def _same(logits, expected):
    return torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
