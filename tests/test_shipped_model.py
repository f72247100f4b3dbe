"""The model in misc/: its ages of two known people, and every result that the documents state."""

import hashlib
import re
import subprocess
import sys

import pytest
from demo_inputs import ASTRONAUT, HOPPER, ROOT

from predictor import AgeEstimator
from utils.download import find_model

SHARED = ROOT.parent / "shared" / "data"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
TOLERANCE = 10  # years
MAE, SHARE = r"([\d.]+) \(([\d.]+)\)", r"([\d.]+)% \(([\d.]+)%\)"  # in brackets with TTA


def row_of(document, name):
    """The cells of the table's row that begins with a data set's name."""
    return re.search(rf"^\| ({name}, .*valid.*)\|$", document, re.M)[1].split(" | ")


@pytest.fixture(scope="module")
def estimator():
    return AgeEstimator(device="cpu")


# Grace Hopper, born December 1906, photographed in January 1984. Eileen Collins, born November
# 1956; her portrait is from between her selection in 1990 and her first command in 1999.
@pytest.mark.parametrize(("photo", "youngest", "oldest"), [(HOPPER, 77, 77), (ASTRONAUT, 33, 42)])
def test_portraits_get_their_ages(estimator, photo, youngest, oldest):
    (face,) = estimator(photo)
    assert youngest - TOLERANCE < face.age < oldest + TOLERANCE


@pytest.mark.parametrize("photo", [ASTRONAUT, HOPPER])
def test_readme_states_what_the_demo_prints(estimator, photo):
    (face,) = estimator(photo)
    stated = re.search(rf"{photo.name}\s+(\d+), (\d+)-(\d+)\n", README)
    for value, text in zip((face.age, face.low, face.high), stated.groups(), strict=True):
        assert value == pytest.approx(int(text), abs=1)  # decoders of images differ a little


def test_file_is_small_and_the_one_named():
    content = find_model().read_bytes()
    assert len(content) < 16e6
    assert hashlib.sha256(content).hexdigest() in CARD


def test_readme_repeats_the_results_of_the_model_card():
    for name in ("UTKFace", "APPA-REAL"):
        _, faces, _, mae, _, ca5, _ = row_of(CARD, name)
        assert [cell.strip(" %") for cell in row_of(README, name)[1:]] == [
            faces, re.fullmatch(MAE, mae)[1], ca5]
    _, faces, _, share = row_of(CARD, "FairFace")
    _, stated_faces, stated, _ = row_of(README, "FairFace")
    assert stated_faces == faces
    assert f"{re.match(SHARE, share)[1]}%" in stated


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "folder", "name"), [
    ("utkface", "UTKFace", "UTKFace"), ("appa_real", "appa-real-release", "APPA-REAL"),
    ("fairface", "fairface", "FairFace")])
def test_valid_results_are_those_stated(dataset, folder, name, tmp_path):
    """Prepare the valid split as a user would, test, and compare with the model card's table."""
    folder = SHARED / folder
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    _, faces, dropped, result, *shares = row_of(CARD, name)
    plain, mirrored = map(float, re.match(SHARE if dataset == "fairface" else MAE, result).groups())
    words = ["--dataset", dataset, "--data_dir", folder, "--list_dir", tmp_path]
    run("-m", "preprocess.generate_csv", *words)
    for path in tmp_path.glob("*_t*.csv"):
        path.unlink()  # train and test
    run("-m", "preprocess.face_align", *words)
    for tta, expected in ((False, plain), (True, mirrored)):
        out = run("test.py", *words, "--split", "valid", "--cache_dir", tmp_path, "TEST.TTA", tta)
        assert int(re.search(r"(\d+) faces", out)[1]) == pytest.approx(
            int(faces.replace(",", "")), abs=3)
        measured = float(re.search(r"(?:test mae|right interval): ([\d.]+)", out)[1])
        assert measured == pytest.approx(expected, abs=0.3 if dataset == "fairface" else 0.03)
        if not tta:
            for n, share in zip((3, 5, 7), shares, strict=False):
                measured = float(re.search(rf"CA\({n}\): ([\d.]+)", out)[1])
                assert measured == pytest.approx(float(share), abs=0.3)
    rejected = (tmp_path / f"{dataset}_rejected.csv").read_text(encoding="utf-8")
    assert rejected.count(",valid,") == pytest.approx(int(dropped), abs=3)


def run(*words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
