"""A short run of fuzz.py, and what it takes for a fault."""

import csv

import fuzz
import numpy as np
import pytest

import demo


def test_no_damaged_file_ends_in_a_traceback():
    outcome = fuzz.run(400, seed=1)
    assert not outcome.faults
    assert sum(outcome.accepted.values()) + sum(outcome.refused.values()) == 400
    for kind in fuzz.KINDS:
        assert outcome.accepted[kind] and outcome.refused[kind]


@pytest.mark.parametrize(("error", "told"), [
    (KeyError("key"), "KeyError"), (ValueError(""), "refused without a word")])
def test_another_error_and_a_silent_refusal_are_faults(error, told, monkeypatch):
    good, raised = b"good" * 20, []

    def make(folder):
        (folder / "file").write_bytes(good)
        return [folder / "file"]

    def read(path):
        if path.read_bytes() != good:
            raised.append(path)
            raise error

    monkeypatch.setitem(fuzz.KINDS, "config", fuzz.Kind(1, make, read))
    outcome = fuzz.run(20, kinds=["config"])
    assert len(outcome.faults) == len(raised) > 10
    assert all(kind == "config" and told in text for kind, _, text in outcome.faults)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
def test_the_demo_names_every_damaged_photo(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, path in enumerate(fuzz.make_images(photos)):
        rng = np.random.default_rng(number)
        path.write_bytes(fuzz.damage_bytes(path.read_bytes(), rng))
    assert demo.main(["--img_dir", str(photos), "--output_dir", str(tmp_path / "out"),
                      "--device", "cpu"]) == 0
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        told = {row["file"]: row["status"] for row in csv.DictReader(file)}
    assert told.keys() == {path.name for path in photos.iterdir()}
    assert len(told) == 13 and len(set(told.values())) > 2
