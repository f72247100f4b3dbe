"""A trained network ready to use, whatever file it comes from: faces in, age probabilities out.

    network = load_age_network("misc/model.onnx")
    probs = network(crops)  # (N, S, S, 3) uint8 RGB -> (N, K), each row sums to 1

An .onnx file, written by export.py, runs in ONNX Runtime on the CPU and needs no PyTorch. A .pth
checkpoint runs in PyTorch as it does in training.
"""

from pathlib import Path

import numpy as np

import metrics
from defaults import age_bins, load_cfg, override_cfg
from utils.onnx_network import OnnxNetwork
from utils.pipeline import available_cores

ONNX = ".onnx"
# What an .onnx file states beside the network: a key of its metadata -> a key of the config.
CONFIG_KEYS = {"architecture": "MODEL.ARCH", "image_size": "MODEL.IMG_SIZE",
               "margin": "DATA.MARGIN", "age_min": "DATA.AGE_MIN", "age_max": "DATA.AGE_MAX",
               "decode": "TEST.DECODE"}


def load_age_network(path, device="cpu", opts=(), threads=None):
    """The network of a file.

    Args:
        path: .onnx file of export.py, or checkpoint of train.py.
        device: "cpu", or a device of PyTorch such as "cuda".
        opts: flat KEY VALUE pairs over the network's config, TEST.* only.
        threads: CPU threads of ONNX Runtime; one for each core by default.
    Returns:
        AgeNetwork.
    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged or foreign file, a device that it cannot run on, or opts that are
            not allowed.
        OSError: ONNX Runtime or PyTorch, which the file needs, is not installed.
    """
    if Path(path).suffix.lower() == ONNX:
        if device != "cpu":
            raise ValueError(f"'{path}' runs on the CPU; use --device cpu, or give the .pth "
                             f"checkpoint to run it on {device}")
        return OnnxAgeNetwork(path, opts, threads)
    return TorchAgeNetwork(path, device, opts)


class AgeNetwork:
    """Interface of both kinds.

    Attributes: `cfg`, the frozen config with the overrides; `age_bins` (K,) list of years;
    `temperature` of the calibration, one number or two (see metrics.face_temperatures), 1.0 if
    there was none; `path`.
    """

    def __init__(self, path, cfg, opts, temperature):
        self.path, self.temperature = path, temperature
        self.cfg = override_cfg(cfg, opts, "TEST")
        self.age_bins = age_bins(self.cfg)

    def __call__(self, crops):
        """Calibrated distributions of faces, TEST.BATCH_SIZE at a time.

        Args:
            crops: sequence of (S, S, 3) uint8 RGB faces, cut as in training.
        Returns:
            (N, K) float32, rows sum to 1; with TEST.TTA the mean with the mirrored face's.
        Raises:
            ValueError: a crop has another shape or type; the network would give a wrong age.
        """
        size, parts = self.cfg.TEST.BATCH_SIZE, [np.zeros((0, len(self.age_bins)), np.float32)]
        for start in range(0, len(crops), size):
            pixels = self._stacked(crops[start:start + size])
            log_probs = self._log_probs(pixels)
            if self.cfg.TEST.TTA:
                log_probs = np.logaddexp(log_probs, self._log_probs(pixels[:, :, ::-1]))
            parts.append(metrics.calibrated_probs(log_probs, self.temperature).astype(np.float32))
        return np.concatenate(parts)

    def _stacked(self, crops):
        """(B, S, S, 3) uint8 of B checked crops."""
        crops = [np.asarray(crop) for crop in crops]
        shape = (self.cfg.MODEL.IMG_SIZE, self.cfg.MODEL.IMG_SIZE, 3)
        for crop in crops:
            if crop.shape != shape or crop.dtype != np.uint8:
                raise ValueError(f"expected a list of {shape} uint8 RGB faces, one of them is "
                                 f"{crop.shape} {crop.dtype}; AgeEstimator.ages_of_crops takes "
                                 "other sizes and types")
        return np.stack(crops)

    def _log_probs(self, pixels):
        """(B, K) log-probabilities of (B, S, S, 3) uint8 faces, before calibration."""
        raise NotImplementedError


class OnnxAgeNetwork(AgeNetwork):
    """The network of an .onnx file; normalisation and softmax are part of it.

    Args, Raises: see load_age_network.

    Attributes: `metadata` {key: text}, what the file states of itself.
    """

    def __init__(self, path, opts=(), threads=None):
        self._network = OnnxNetwork(path, threads or available_cores())
        self.metadata = self._network.metadata
        cfg, temperature = read_metadata(self.metadata, path)
        super().__init__(path, cfg, opts, temperature)
        self._check_shapes()

    def calibrated_in_file(self, crops):
        """The file's own output of calibrated probabilities, for users of the file alone.

        Args:
            crops: sequence of (S, S, 3) uint8 RGB faces.
        Returns:
            (N, K) float32, what __call__ gives without TEST.TTA.
        """
        probs, _ = self._outputs(self._stacked(crops))
        return probs

    def _log_probs(self, pixels):
        _, log_probs = self._outputs(pixels)
        return log_probs

    def _outputs(self, pixels):
        return self._network(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _check_shapes(self):
        """Refuse a network that does not compute what its metadata say."""
        size, network = self.cfg.MODEL.IMG_SIZE, self._network
        if network.input_type != "tensor(uint8)" or network.input_shape[1:] != [3, size, size]:
            raise ValueError(f"'{self.path}' takes {network.input_type} of shape "
                             f"{network.input_shape}, not pixels of {size} x {size} faces as its "
                             "metadata say; write it with export.py")
        if [shape[1:] for shape in network.output_shapes] != [[len(self.age_bins)]] * 2:
            raise ValueError(f"'{self.path}' gives outputs of the shapes {network.output_shapes}, "
                             "not a probability and a log-probability for each of the ages "
                             f"{self.age_bins[0]} to {self.age_bins[-1]}; an earlier "
                             "version or another project wrote it: write it with export.py")


def read_metadata(metadata, path):
    """(frozen config, temperature) of the texts that an .onnx file carries.

    Raises:
        ValueError: one is missing, or is not what it should be.
    """
    missing = [key for key in (*CONFIG_KEYS, "temperature") if key not in metadata]
    if missing:
        raise ValueError(f"'{path}' is not an age network of this project: its metadata lack "
                         f"{', '.join(missing)}; write it with export.py")
    opts = [word for key, name in CONFIG_KEYS.items() for word in (name, metadata[key])]
    try:
        temperature = [float(word) for word in metadata["temperature"].split()]
        if len(temperature) not in (1, 2) or not all(0 < one < float("inf") for one in temperature):
            raise ValueError("temperature must be one or two positive numbers, got "
                             f"'{metadata['temperature']}'")
        return load_cfg(opts=opts), temperature
    except ValueError as error:
        raise ValueError(f"'{path}': its metadata cannot be used: {error}") from error


class TorchAgeNetwork(AgeNetwork):
    """The network of a checkpoint, in PyTorch.

    Args, Raises: see load_age_network.

    Attributes: `model`, the AgeModel in eval mode; `checkpoint`, the file's content.
    """

    def __init__(self, path, device="cpu", opts=()):
        try:
            import torch

            from checkpoint import load_checkpoint, temperature_of
            from model import restore_model
        except ImportError as error:
            raise OSError(f"'{path}' needs PyTorch, which cannot be loaded ({error}); install it "
                          "with: pip install -r requirements.txt; or write an .onnx file with "
                          "export.py where it is installed") from error
        self.checkpoint = load_checkpoint(path)
        model, cfg = restore_model(self.checkpoint, device)
        super().__init__(path, cfg, opts, temperature_of(self.checkpoint))
        self.model, self.device = model.to(memory_format=torch.channels_last), device

    def _log_probs(self, pixels):
        import torch

        from dataset import to_pixels
        with torch.inference_mode():
            logits = self.model(to_pixels(pixels).to(self.device)).float()
            return logits.log_softmax(dim=1).cpu().numpy()
