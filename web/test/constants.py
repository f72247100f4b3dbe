"""Print what the page's modules repeat of the Python modules, as JSON, for constants.test.js.

    python web/test/constants.py
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import demo  # noqa: E402
import metrics  # noqa: E402
import predictor  # noqa: E402
from media import drawing, results, tracking  # noqa: E402
from preprocess import detector, face, mtcnn  # noqa: E402
from utils.download import MISC, find_model  # noqa: E402

AGE_BINS = list(range(101))


def main():
    print(json.dumps({"constants": constants(), "networks": network_files(), "rows": rows()}))


def constants():
    """{module of the page: {name: value}}; a value stands under the page's name."""
    names = {
        mtcnn: ("CELL", "STRIDE", "PYRAMID_FACTOR", "MIN_PROPOSAL_SCORE", "MIN_REFINED_SCORE",
                "MIN_FACE_SCORE", "MAX_LEVEL_IOU", "MAX_PHOTO_IOU", "MAX_FACE_OVERLAP",
                "REFINE_SIZE", "OUTPUT_SIZE", "MAX_TILE"),
        detector: ("SPAN", "REACH", "MIN_SAME_FACE_IOU"),
        face: ("ROLL_DECIMALS", "BOX_DECIMALS"),
        metrics: ("INTERVAL_SHARE",),
        predictor: ("MIN_FACE", "MIN_CONFIDENCE"),
        results: ("FACE_FIELDS", "FIELDS", "OK", "NO_FACE", "UNREADABLE"),
        drawing: ("COLOURS", "MAX_COVERED"),
        tracking: ("MIN_IOU", "MAX_MISSES", "MIN_NEWEST_WEIGHT", "SMOOTHING"),
    }
    values = {module.__name__.split(".")[-1]: {name: getattr(module, name) for name in of_module}
              for module, of_module in names.items()}
    values["folders"] = {"IMAGE_ENDINGS": face.IMAGE_ENDINGS}
    values["predictor"]["STREAM_FACE_RATIO"] = demo.STREAM_MIN_FACE_RATIO
    return values


def network_files():
    """Paths of the networks, from the root of the repository, in the order that the page has."""
    paths = [*(MISC / name for name in mtcnn.NETWORK_FILES), find_model(prefer_onnx=True)]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def rows():
    """A face, and the rows of the tables with it and without one: they show every rounding."""
    probs = np.exp(-0.5 * ((np.array(AGE_BINS) - 34.56789) / 3.21) ** 2)
    found = predictor.face_from_probs([10.12649, 20.005, 110.98765, 140.125], 0.98765432, -3.14159,
                                      probs / probs.sum(), AGE_BINS)
    described = {**dict(found), "probs": [float(prob) for prob in found.probs]}
    origin = {"file": "photo.jpg"}
    return {"face": described,
            "with": results.result_rows(origin, [(1, found)], results.FIELDS),
            "without": results.result_rows(origin, [], results.FIELDS)}


if __name__ == "__main__":
    main()
