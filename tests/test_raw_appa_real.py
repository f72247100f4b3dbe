"""APPA-REAL as released, without a list of boxes, on the real photos."""

import shutil

import pandas as pd
import pytest
from faces import TINY
from scripts import ROOT, script

from preprocess import face_align, generate_csv

RAW = ROOT.parent / "shared" / "data" / "appa-real-release"
FACES = 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(raw, aligned): the same faces, as released and with lists of face_align."""
    place = tmp_path_factory.mktemp("appa")
    for name in ("raw", "aligned"):
        for split, count in (("train", 24), ("valid", FACES)):
            folder = place / name / split
            folder.mkdir(parents=True)
            table = pd.read_csv(RAW / f"gt_avg_{split}.csv").head(count)
            table.to_csv(place / name / f"gt_avg_{split}.csv", index=False)
            for photo in table["file_name"] + "_face.jpg":
                shutil.copy(RAW / split / photo, folder)
    words = ["--dataset", "appa_real", "--data_dir", str(place / "aligned")]
    with pytest.MonkeyPatch.context() as patched:
        for step in (generate_csv, face_align):
            patched.setattr("sys.argv", ["step", *words])
            step.main()
    return place / "raw", place / "aligned"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not RAW.is_dir(), reason=f"no {RAW}")]


def test_the_shipped_model_errs_on_raw_faces_as_on_aligned_ones(folders, tmp_path):
    told = [script("test.py", "--data_dir", folder, "--split", "valid", "--cache_dir", tmp_path)
            .stdout for folder in folders]
    raw, aligned = (float(text.split("test mae: ")[1]) for text in told)
    assert f"{FACES} faces have no box in their list: found as preprocess.face_align" in told[0]
    assert "no box" not in told[1]
    assert abs(raw - aligned) < 0.3
    assert raw < 5


def test_training_reads_raw_faces_as_aligned_ones(folders, tmp_path):
    told = [script("train.py", "--data_dir", folder, "--cache_dir", tmp_path / "cache",
                   "--checkpoint", tmp_path / name, *TINY, "TRAIN.EPOCHS", "1").stdout
            for name, folder in zip(("raw", "aligned"), folders, strict=True)]
    assert "train: 24 faces have no box in their list" in told[0]
    assert f"valid: {FACES} faces have no box in their list" in told[0]
    assert "no box" not in told[1]
