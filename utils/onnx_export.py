"""PyTorch networks written as ONNX files, see utils.onnx_network for reading them."""

import contextlib
import io
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from utils.files import replaced
from utils.onnx_network import CHECKSUM_KEY, with_checksum
from utils.precision import MIN_HALVED


def write_onnx(network, example, path, names, free_sizes, metadata=None, half=False):
    """Trace a network and write it as an ONNX file, whole or not at all.

    Args:
        network: nn.Module in eval mode on the CPU, of one input.
        example: tensor that it takes, its sizes 2 or more.
        path: file to write.
        names: (name of the input, list of the outputs' names).
        free_sizes: {axis of the input: its name} of the sizes that vary.
        metadata: {key: value} stored in the file as texts; its checksum is added.
        half: store weights in half precision; they are computed with in single precision.
    Raises:
        ValueError: an operator of the network cannot be exported; names it.
        OSError: the file cannot be written.
    """
    model = _traced(network, example, names, free_sizes)
    _remove_traces(model)
    if half:
        _halve_weights(model)
    for key, value in {**(metadata or {}), CHECKSUM_KEY: "0" * 64}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    with replaced(path) as temporary:
        temporary.write_bytes(with_checksum(model.SerializeToString()))


def _traced(network, example, names, free_sizes):
    """onnx.ModelProto of a network."""
    input_name, output_names = names
    sizes = {axis: torch.export.Dim(name) for axis, name in free_sizes.items()}
    try:
        with (warnings.catch_warnings(), torch.no_grad(),
              contextlib.redirect_stdout(io.StringIO())):  # where the exporter prints its steps
            warnings.simplefilter("ignore")
            program = torch.onnx.export(network, (example,), dynamo=True, verbose=False,
                                        input_names=[input_name], output_names=output_names,
                                        dynamic_shapes=(sizes,))
    except Exception as error:  # of many kinds, most of them private to the exporter
        raise ValueError(f"cannot be exported to ONNX: {_reason(error)}") from error
    return program.model_proto


def _remove_traces(model):
    """Remove what the exporter notes for debugging: stack traces with this machine's paths."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output,
                 *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _reason(error):
    """The innermost cause of an exporter's error, its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _halve_weights(model):
    """Store large float tensors in half precision, each behind a Cast that is folded at load."""
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # such a tensor is left as it is
            halved = values.astype("float16")
        if (tensor.data_type != TensorProto.FLOAT or values.size < MIN_HALVED
                or not abs(halved).max() < float("inf")):
            continue
        name = f"{tensor.name}_half"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(halved, name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    onnx.checker.check_model(model)
