"""Networks in ONNX files, run by ONNX Runtime on the CPU: arrays in, arrays out."""

import hashlib
import re
from pathlib import Path

import numpy as np

from utils.download import refuse_failed_download

MAX_BATCH = 64  # inputs computed at once; bounds the memory
CHECKSUM_KEY = "content_sha256"  # in the metadata: of the file, with zeros in its own place
# The entry as it stands in the file: the key, a tag, the length 64 ("@"), the text.
CHECKSUM = re.compile(CHECKSUM_KEY.encode() + b"\x12@([0-9a-f]{64})")


class OnnxNetwork:
    """A network of one input, from an ONNX file.

    Args:
        path: file, written by utils.onnx_export or by any other program.
        threads: CPU threads.
    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not an ONNX file, is damaged, or needs a newer runtime.
        OSError: ONNX Runtime is not installed.

    Attributes: `metadata` {key: text}, `input_shape` list of numbers and, for a free size, names,
    `input_type` such as "tensor(uint8)", `output_shapes` list of such lists.
    """

    def __init__(self, path, threads):
        if not Path(path).is_file():
            raise FileNotFoundError(f"network '{path}' not found; it is part of the repository, "
                                    "or written by export.py")
        try:
            import onnxruntime
        except ImportError as error:
            raise OSError(f"'{path}' needs ONNX Runtime, which cannot be loaded ({error}); install "
                          "it with: pip install -r requirements-demo.txt") from error
        refuse_failed_download(path)
        content = Path(path).read_bytes()
        if with_checksum(content) != content:
            raise ValueError(f"network '{path}' is damaged: its checksum is wrong; fetch it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # this class raises its own errors
        options.enable_mem_pattern = False  # a plan for each shape; the detector has hundreds
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(content, options,
                                                         providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's classes have no common base but this one
            raise ValueError(f"'{path}' is not an ONNX network, is damaged, or needs a newer "
                             f"onnxruntime: {_first_line(error)}") from error
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        [first, *_] = self._session.get_inputs()
        self.input_shape, self.input_type = first.shape, first.type
        self.output_shapes = [output.shape for output in self._session.get_outputs()]
        self._input_name = first.name

    def __call__(self, inputs):
        """Outputs for a batch.

        Args:
            inputs: (N, ...) array, N may be 0.
        Returns:
            list of (N, ...) arrays, one an output. Several threads may call at once.
        """
        if not len(inputs):  # a network cannot run on nothing: its outputs' shapes tell
            return [output[:0] for output in self(np.zeros((1, *inputs.shape[1:]), inputs.dtype))]
        parts = [self._session.run(None, {self._input_name: inputs[start:start + MAX_BATCH]})
                 for start in range(0, len(inputs), MAX_BATCH)]
        return parts[0] if len(parts) == 1 else [np.concatenate(part)
                                                 for part in zip(*parts, strict=True)]


def with_checksum(content):
    """A file's bytes with the place of the checksum, if there is one, filled in."""
    found = CHECKSUM.search(content)
    if not found:
        return content
    before, after = content[:found.start(1)], content[found.end(1):]
    checksum = hashlib.sha256(before + b"0" * 64 + after).hexdigest()
    return before + checksum.encode() + after


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
