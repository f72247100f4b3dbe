"""A trained network made fast: through OpenVINO on a CPU that has it, else in PyTorch."""

import copy
import warnings

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

try:
    import openvino
except ImportError:  # PyTorch takes about twice as long for a face
    openvino = None


def fast_model(model, image_size, device):
    """The fastest way at hand to compute what a network computes.

    Args:
        model: AgeModel in eval mode, on the device.
        image_size: pixels, side of its input.
        device: torch.device.
    Returns:
        Function, (B, 3, S, S) uint8 pixels on the device -> (B, K) float32 logits there.
    """
    converted = _converted(model, image_size) if device.type == "cpu" else None
    return converted or fuse_batch_norms(model, image_size, device)


def _converted(model, image_size):
    """OpenVinoModel, or None where there is no OpenVINO or it cannot do this network."""
    if openvino is None:
        return None
    pixels = _noise(image_size)
    try:
        converted = OpenVinoModel(model, pixels)
    except Exception:  # of many kinds, for an operator that OpenVINO does not know
        return None
    with torch.no_grad():
        return converted if _same(converted(pixels), model(pixels)) else None


class OpenVinoModel:
    """An AgeModel compiled by OpenVINO for as many CPU threads as PyTorch uses.

    Args:
        model: AgeModel in eval mode, on the CPU.
        pixels: (B, 3, S, S) uint8, an example; other batch sizes work too.
    """

    def __init__(self, model, pixels):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's about the tracing that OpenVINO relies on
            converted = openvino.convert_model(model, example_input=pixels,
                                               input=[(-1, *pixels.shape[1:])])
        self.request = openvino.Core().compile_model(converted, "CPU", {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # bf16, its default on some CPUs, moves ages
            "ENABLE_CPU_PINNING": False,  # several processes would share one core
        }).create_infer_request()

    def __call__(self, pixels):
        result = self.request.infer({0: pixels.contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(result[0])


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
