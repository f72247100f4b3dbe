"""The model in misc/: its ages of two known people, and every result that the documents state."""

import hashlib
import json
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
FOLDERS = {"utkface": "UTKFace", "appa_real": "appa-real-release", "fairface": "fairface"}
METRICS = {  # titles in the model card by keys of metrics.json
    "MAE, years": "mae", "bias, years": "bias", "RMSE, years": "rmse",
    "CA(3), error < 3 years, %": "ca3", "CA(5), %": "ca5", "CA(7), %": "ca7",
    "CS(5), error of 5 years or less, %": "cs5", "ε-error (APPA-REAL only)": "epsilon_error",
    "NLL, nats": "nll", "CRPS, years": "crps", "AURC, years": "aurc",
    "MAE with `TEST.TTA True`": "tta"}
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


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Function (data set) -> flags for test.py on its valid split, which it prepares first."""
    lists, prepared = tmp_path_factory.mktemp("lists"), {}

    def prepare(dataset):
        folder = SHARED / FOLDERS[dataset]
        if not folder.is_dir():
            pytest.skip(f"no {folder}")
        flags = ["--dataset", dataset, "--data_dir", folder, "--list_dir", lists]
        if dataset not in prepared:
            run("-m", "preprocess.generate_csv", *flags)
            for split in ("train", "test"):
                (lists / f"{dataset}_{split}.csv").unlink(missing_ok=True)
            run("-m", "preprocess.face_align", *flags)
            prepared[dataset] = [*flags, "--split", "valid", "--cache_dir", lists / "cache"]
        return prepared[dataset]
    return prepare


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "name"), [
    ("utkface", "UTKFace"), ("appa_real", "APPA-REAL"), ("fairface", "FairFace")])
def test_results_by_data_set_are_those_stated(flags_of, dataset, name):
    flags = flags_of(dataset)
    _, faces, dropped, result, *shares = row_of(CARD, name)
    plain, mirrored = map(float, re.match(SHARE if dataset == "fairface" else MAE, result).groups())
    for tta, expected in ((False, plain), (True, mirrored)):
        out = run("test.py", *flags, "TEST.TTA", tta)
        tested = re.search(r"([\d,]+) faces", out)[1]
        assert int(tested.replace(",", "")) == pytest.approx(int(faces.replace(",", "")), abs=3)
        measured = float(re.search(r"(?:test mae|right interval): ([\d.]+)", out)[1])
        assert measured == pytest.approx(expected, abs=0.3 if dataset == "fairface" else 0.03)
        if not tta:
            for n, share in zip((3, 5, 7), shares, strict=False):
                measured = float(re.search(rf"CA\({n}\): ([\d.]+)", out)[1])
                assert measured == pytest.approx(float(share), abs=0.3)
    rejected = (flags[5] / f"{dataset}_rejected.csv").read_text(encoding="utf-8")
    assert rejected.count(",valid,") == pytest.approx(int(dropped), abs=3)


@pytest.mark.slow
def test_results_of_both_data_sets_are_those_stated(flags_of, tmp_path):
    """The tables by metric, by age and by group of the model card, against the report."""
    utkface, appa_real = flags_of("utkface"), flags_of("appa_real")
    run("test.py", "--dataset", "utkface", "appa_real", "--data_dir", utkface[3], appa_real[3],
        *utkface[4:], "--report", tmp_path)
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    stated = dict(re.findall(r"^\| ([^|]+) \| (-?[\d.]+)(?: \([^|]*\))? \|$", CARD, re.M))
    for title, key in METRICS.items():
        measured = report["tta"]["mae"] if key == "tta" else report[key]
        tolerance = 0.3 if title.endswith("%") else 0.03
        assert measured["value"] == pytest.approx(float(stated[title]), abs=tolerance), title
    groups = report["groups"]["age_band"] | report["groups"]["gender"] | report["groups"]["race"]
    rows = re.findall(
        r"^\| ([\w+-]+) \| ([\d,]+) \| ([\d.]+) \([^|]*\) \| (-?[\d.]+) \(", CARD, re.M)
    assert len(rows) == 17  # 10 ages, 2 genders, 5 races
    for name, faces, mae, bias in rows:
        assert groups[name]["n"] == pytest.approx(int(faces.replace(",", "")), abs=3), name
        assert groups[name]["mae"]["value"] == pytest.approx(float(mae), abs=0.15), name
        assert groups[name]["bias"]["value"] == pytest.approx(float(bias), abs=0.15), name


def run(*words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
