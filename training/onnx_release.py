"""A checkpoint as an .onnx file for use without PyTorch, checked against the network it is from."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

import metrics
from age_network import OnnxAgeNetwork, TorchAgeNetwork
from defaults import load_cfg, override_cfg
from model import PixelsToProbs
from preprocess.detector import FaceDetector, cut_face
from preprocess.face import load_photo
from utils.files import file_sha256, replaced
from utils.locks import only_writer
from utils.onnx_export import write_onnx

MAX_AGE_DIFFERENCE = 0.1  # years, between PyTorch and the file; a larger one is not written
SAMPLES = Path(__file__).parents[1] / "misc" / "samples"


def export_onnx(source, target, opts=(), half=True, licence="not stated"):
    """Write a checkpoint's network as an .onnx file, if it gives the same ages.

    Both are asked for the ages of the faces in misc/samples, as they are and changed.

    Args:
        source: checkpoint of train.py.
        target: file to write, in an existing folder.
        opts: flat KEY VALUE pairs, TEST.* only; TEST.DECODE becomes part of the file.
        half: store the weights in half precision, which halves the file.
        licence: text, under which terms the weights may be used.
    Returns:
        (largest difference in years, largest difference of a probability, number of faces).
    Raises:
        ValueError: opts set TEST.TTA, an operator cannot be exported, or the ages differ by more
            than MAX_AGE_DIFFERENCE, or another process writes to the folder of the target; nothing
            is written then.
    """
    if override_cfg(load_cfg(), opts, "TEST").TEST.TTA:
        raise ValueError("TEST.TTA True: an .onnx file does not average the face and its mirror "
                         "image by itself; leave it out here, and give it to whatever runs the "
                         "file, such as export.py --verify")
    opts = [*opts, "TEST.TTA", "False"]  # the checkpoint may have it
    network = TorchAgeNetwork(source, "cpu", opts)
    size = network.cfg.MODEL.IMG_SIZE
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    calibrated = PixelsToProbs(network.model.to(memory_format=torch.contiguous_format),
                               network.temperature, len(network.age_bins)).eval()
    crops = sample_crops(network.cfg.DATA.MARGIN, size)
    with only_writer(Path(target).parent, "write to another folder"), \
            replaced(target) as temporary:
        try:
            write_onnx(calibrated, example, temporary, ("pixels", ["probs", "log_probs"]), {0: "n"},
                       file_metadata(network, licence), half)
        except ValueError as error:
            raise ValueError(f"MODEL.ARCH '{network.cfg.MODEL.ARCH}' {error}") from error
        written = OnnxAgeNetwork(temporary, opts)
        expected = network(crops)
        found = np.stack([written(crops), written.calibrated_in_file(crops)])
        decode = metrics.DECODES[network.cfg.TEST.DECODE]
        ages = decode(expected, network.age_bins)
        years = max(np.abs(decode(probs, network.age_bins) - ages).max() for probs in found)
        if not years <= MAX_AGE_DIFFERENCE:  # NaN is not
            raise ValueError(f"not written: in ONNX Runtime an age differs by {years:.3f} years "
                             f"from PyTorch's, more than {MAX_AGE_DIFFERENCE}"
                             + ("; try --fp32" if half else ""))
    return float(years), float(np.abs(found - expected).max()), len(crops)


def file_metadata(network, licence):
    """{key: value} that an .onnx file carries, see age_network.CONFIG_KEYS.

    Args:
        network: TorchAgeNetwork.
        licence: text.
    """
    cfg, checkpoint = network.cfg, network.checkpoint
    temperature = " ".join(map(str, np.ravel(network.temperature)))
    return {"architecture": cfg.MODEL.ARCH, "image_size": cfg.MODEL.IMG_SIZE,
            "margin": cfg.DATA.MARGIN, "age_min": cfg.DATA.AGE_MIN, "age_max": cfg.DATA.AGE_MAX,
            "decode": cfg.TEST.DECODE, "temperature": temperature,
            "data_sets": ", ".join(checkpoint.get("datasets", [])), "licence": licence,
            "commit": checkpoint.get("commit", "unknown"),
            "source_sha256": file_sha256(network.path)}


def sample_crops(margin_ratio, size):
    """(size, size, 3) uint8 crops of the faces in misc/samples, each in eight variants."""
    crops = []
    photos = [load_photo(path) for path in sorted(SAMPLES.iterdir()) if path.suffix != ".txt"]
    for photo, faces in zip(photos, FaceDetector().align(photos, faces="all"), strict=True):
        for face in faces:
            crop = Image.fromarray(cut_face(photo, face, margin_ratio, size))
            for one in (crop, ImageOps.mirror(crop)):
                coarse = one.resize((size // 3 + 1,) * 2).resize(one.size)
                crops += [one, ImageEnhance.Brightness(one).enhance(0.5),
                          ImageEnhance.Contrast(one).enhance(1.5), coarse]
    return [np.asarray(crop) for crop in crops]
