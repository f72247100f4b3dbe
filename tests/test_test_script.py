"""test.py as a user runs it: scores, tables, reports, calibration, and what it refuses."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from faces import TINY, write_dataset
from scripts import refusal, script, train, weights

import metrics
from checkpoint import load_checkpoint
from dataset import FaceDataset
from defaults import load_cfg
from lists import Source, read_faces
from model import restore_model
from utils.download import MISC
from utils.locks import only_writer


def warned(recwarn):
    """The warnings since the last call, as one text."""
    text = "\n".join(str(one.message) for one in recwarn)
    recwarn.clear()
    return text


def test_calibration_is_stored_and_applied(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    model = tmp_path / "run" / "best.pth"
    words = ["--data_dir", folder, "--resume", model, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--output", tmp_path / "before.csv")
    told = script("test.py", *words, "--calibrate").stdout
    temperature, last = weights(model)["temperature"]
    assert last == temperature  # so few faces say nothing of how it changes with the age
    assert f"temperature {temperature:.3f}, fitted" in told
    assert "covers" in told
    script("test.py", *words, "--output", tmp_path / "after.csv")
    columns = [f"p{age}" for age in range(101)]
    before, after = (pd.read_csv(tmp_path / f"{name}.csv")[columns].to_numpy()
                     for name in ("before", "after"))
    scaled = before ** (1 / temperature)
    np.testing.assert_allclose(after, scaled / scaled.sum(axis=1, keepdims=True), atol=1e-4)
    assert not np.allclose(before, after, atol=1e-3)


def test_a_calibration_tells_what_speaks_against_it(folder, trained, tmp_path, recwarn):
    model = tmp_path / "model.pth"
    words = ["--data_dir", folder, "--resume", model, "--cache_dir", tmp_path / "cache",
             "--calibrate"]
    certain = weights(trained)
    certain["model"]["head.weight"].zero_()
    certain["model"]["head.bias"].fill_(-1e6)[40] = 1e6  # no temperature makes it wide enough
    torch.save(certain, model)
    assert "temperature 20.000" in script("test.py", *words).stdout
    told = warned(recwarn)
    assert "the temperature is at an end of the range 0.05 to 20 that is searched" in told
    assert "trained on these faces" not in told
    shutil.copy(trained, model)
    script("test.py", *words, "--split", "train")
    assert "--calibrate --split train: if the model was trained on these faces" in warned(recwarn)


def test_a_calibration_is_measured_on_faces_that_it_was_not_fitted_to(folder, trained, tmp_path):
    data, bins = tmp_path / "data", torch.arange(101.0)
    write_dataset(data, [10, 90] * 20, splits=("valid",))
    logits = torch.where(bins < 10, 100, 1) * -(bins - 10).abs()  # a tail towards the old
    model = weights(trained)
    model["model"]["head.weight"].zero_()
    model["model"]["head.bias"].copy_(logits)
    torch.save(model, tmp_path / "model.pth")
    told = script("test.py", "--data_dir", data, "--resume", tmp_path / "model.pth", "--cache_dir",
                  tmp_path / "cache", "--calibrate").stdout
    # The faces of 90 ask for the widest distribution, those of 10 for the narrowest. Each half gets
    # what the other asked for.
    widest, narrowest = ((logits / temperature).softmax(0) @ bins
                         for temperature in (metrics.TEMPERATURES[1], metrics.TEMPERATURES[0]))
    after = ((widest - 10).abs() + (narrowest - 90).abs()) / 2
    assert f"{after:.3f} after, on faces not fitted" in told


def test_a_calibration_leaves_out_faces_of_which_a_range_is_known(folder, trained, tmp_path):
    ages, told = [10, 20, 30, 40, 50, 60, 70, 80] * 5, []
    for name, ranges in (("exact", []), ("both", [1] * 30)):  # their middles say the opposite
        rows = [("" if age == 1 else age, 0 if age == 1 else "", 1 if age == 1 else "")
                for age in [*ages, *ranges]]
        write_dataset(tmp_path / name, [*ages, *ranges], splits=("valid",), columns=dict(zip(
            ("age", "age_min", "age_max"), map(list, zip(*rows, strict=True)), strict=True)))
        shutil.copy(trained, tmp_path / f"{name}.pth")
        out = script("test.py", "--data_dir", tmp_path / name, "--resume",
                     tmp_path / f"{name}.pth", "--cache_dir", tmp_path / "cache",
                     "--calibrate").stdout
        told += [line for line in out.splitlines() if line.startswith("temperature")]
    assert "fitted on 40 faces" in told[0] and told[0] == told[1]


def test_a_model_is_not_measured_in_silence_on_faces_that_it_has_learned(
        folder, trained, tmp_path, recwarn):
    data = tmp_path / "data"
    write_dataset(data, [20, 40], name="utkface", splits=("test", "valid"))
    words = ["--data_dir", data, "--cache_dir", tmp_path / "cache"]
    for resume in ([], ["--resume", MISC / "model.pth"]):
        script("test.py", *words, *resume)
        assert "the model in misc/ has learned the faces of utkface's test list" in warned(recwarn)
    script("test.py", *words, "--split", "valid")
    script("test.py", *words, "--resume", trained)
    assert "has learned" not in warned(recwarn)

    lists = tmp_path / "lists"
    shutil.copytree(folder, lists)
    (lists / "drawn_split_other.csv").write_text(
        "photo,split\n" + "".join(f"drawn_{n}.png,test\n" for n in range(8)))
    script("test.py", "--data_dir", lists, "--cache_dir", tmp_path / "cache", "--resume", trained,
           "--protocol", "other")
    assert f"{trained} was trained on the lists' own splits of drawn, and is measured on " \
        "--protocol other: it has learned some of these faces" in warned(recwarn)


def test_only_a_model_given_by_its_file_is_calibrated(folder):
    done = script("test.py", "--data_dir", folder, "--resume", "default", "--calibrate",
                  check=False)
    assert "name its file with --resume" in refusal(done)


def test_a_temperature_is_not_fitted_to_averages_that_the_model_does_not_make(
        folder, trained, tmp_path):
    model = tmp_path / "model.pth"
    shutil.copy(trained, model)
    words = ["--data_dir", folder, "--resume", model, "--cache_dir", tmp_path / "cache",
             "--calibrate", "TEST.TTA", "True"]
    before = model.read_bytes()
    assert "is used with TEST.TTA False" in refusal(script("test.py", *words, check=False))
    assert model.read_bytes() == before
    averaging = weights(trained)
    averaging["cfg"] = averaging["cfg"].replace("TTA: false", "TTA: true")
    torch.save(averaging, model)
    script("test.py", *words)  # as configs/default.sh does with its pairs


def test_tta_is_the_mean_of_the_image_and_its_mirror(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--output", tmp_path / "tta.csv", "TEST.TTA", "True")
    table = pd.read_csv(tmp_path / "tta.csv")
    model, _ = restore_model(load_checkpoint(trained))
    cfg = load_cfg(None, TINY)
    faces = read_faces(Source(folder, "drawn", folder), "test", cfg)
    data = FaceDataset(faces, cfg, False, tmp_path / "cache")
    pixels = data.batch([(0, i) for i in range(8)])["pixels"]
    with torch.no_grad():
        probs = (model(pixels).softmax(1) + model(pixels.flip(-1)).softmax(1)) / 2
    np.testing.assert_allclose(table[[f"p{age}" for age in range(101)]], probs, atol=1e-5)


def test_the_median_can_be_the_age(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--output", tmp_path / "m.csv", "TEST.DECODE", "median")
    script("test.py", *words, "--output", tmp_path / "e.csv")
    table = pd.read_csv(tmp_path / "m.csv")
    medians = metrics.distribution_median(
        table[[f"p{age}" for age in range(101)]].to_numpy(), range(101))
    np.testing.assert_allclose(table["pred_age"], medians, atol=1e-3)
    assert not np.allclose(table["pred_age"], pd.read_csv(tmp_path / "e.csv")["pred_age"])


def test_reports_of_one_model_of_several_and_of_a_table(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--cache_dir", tmp_path / "cache", "--report"]
    script("test.py", *words, tmp_path / "one", "--resume", trained)
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert {"value", "low", "high"} <= metrics["mae"].keys()
    assert (tmp_path / "one" / "report.html").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "one" / "predictions.csv")
    lists = pd.read_csv(folder / "drawn_test_align.csv")
    sides = np.sqrt((lists["box3"] - lists["box1"]) * (lists["box4"] - lists["box2"]))
    np.testing.assert_allclose(table["face_px"], sides, atol=0.06)
    assert (table["sharpness"] > 0).all()
    assert sum(group["n"] for group in metrics["audit"]["face_size"].values()) == len(lists)
    assert "no list of rejected photos for drawn" in metrics["audit"]["not_processed"]["why"]
    other = tmp_path / "other.pth"
    shutil.copy(trained, other)
    lines = script("test.py", *words, tmp_path / "two", "--resume", trained,
                   other).stdout.splitlines()
    assert {str(trained), str(other)} <= {*lines}  # each named once, above its scores
    assert len(json.loads((tmp_path / "two" / "metrics.json").read_text())["comparisons"]) == 1
    done = script("test.py", "--predictions", tmp_path / "one" / "predictions.csv", "--report",
                  tmp_path / "table")
    assert done.stdout.splitlines()[-1] == f"test mae: {metrics['mae']['value']:.3f}"


def test_excluded_photos_count_neither_as_processed_nor_as_rejected(folder, trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    photos = [f"r{k}.png" for k in range(8)]
    pd.DataFrame({"photo": photos, "split": "test", "reason": "no face"}).to_csv(
        data / "drawn_rejected.csv", index=False)
    (tmp_path / "out.csv").write_text("\n".join(["photo", "drawn_0.png", *photos[:6]]) + "\n")
    words = ["--data_dir", data, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    for opts, rejected, faces in (([], 8, 8), (["DATA.EXCLUDE", tmp_path / "out.csv"], 2, 7)):
        script("test.py", *words, "--report", tmp_path / "report", *opts)
        results = json.loads((tmp_path / "report" / "metrics.json").read_text())
        number = results["audit"]["not_processed"]
        assert (number["value"], number["n"]) == (
            pytest.approx(100 * rejected / (rejected + faces)), rejected + faces)
        assert results["provenance"]["Photos without a face"] == {f"drawn in '{data}'": rejected}


def test_rejected_photos_of_two_folders_of_one_name_are_added_up(folder, trained, tmp_path):
    words = []
    for name, count in (("a", 4), ("b", 1)):
        shutil.copytree(folder, tmp_path / name)
        pd.DataFrame({"photo": [f"r{k}.png" for k in range(count)], "split": "test",
                      "reason": "no face"}).to_csv(tmp_path / name / "drawn_rejected.csv")
        words.append(tmp_path / name)
    script("test.py", "--data_dir", *words, "--resume", trained, "--cache_dir", tmp_path / "cache",
           "--report", tmp_path / "report")
    results = json.loads((tmp_path / "report" / "metrics.json").read_text())
    number = results["audit"]["not_processed"]
    assert (number["value"], number["n"]) == (pytest.approx(100 * 5 / 21), 21)


def test_a_report_does_not_replace_the_table_it_is_made_of(tmp_path):
    text = "photo,age,pred_age,note\na.jpg,30,31.123456789,007\n"
    (tmp_path / "predictions.csv").write_text(text)
    words = ["--predictions", tmp_path / "predictions.csv", "--report"]
    done = script("test.py", *words, tmp_path, check=False)
    assert "would be overwritten; choose another --report" in refusal(done)
    assert (tmp_path / "predictions.csv").read_text() == text
    script("test.py", *words, tmp_path / "elsewhere")


def test_a_report_of_seeds_knows_their_calibration(folder, trained, tmp_path):
    for seed in ("s0", "s1"):
        (tmp_path / seed).mkdir()
        torch.save(weights(trained) | {"temperature": 0.8}, tmp_path / seed / "best.pth")
    script("test.py", "--data_dir", folder, "--cache_dir", tmp_path / "cache", "--resume",
           tmp_path / "s*" / "best.pth", "--report", tmp_path / "report")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert found["uncalibrated"]["temperature"] == 0.8
    for path, words, described in (
            (tmp_path / "s0" / "best.pth", ["TEST.TTA", "True"], found["tta"]),
            (trained, [], found["uncalibrated"])):
        script("test.py", "--data_dir", folder, "--cache_dir", tmp_path / "cache", "--resume", path,
               "--report", tmp_path / "one", *words)
        alone = json.loads((tmp_path / "one" / "metrics.json").read_text())
        for name in ("mae", "nll"):
            assert described[name]["value"] == pytest.approx(alone[name]["value"], rel=1e-5)


def test_a_checkpoint_may_have_the_name_of_a_glob(folder, trained, tmp_path):
    (tmp_path / "run[1]").mkdir()
    shutil.copy(trained, tmp_path / "run[1]" / "best.pth")
    words = ["--data_dir", folder, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--resume", tmp_path / "run[1]" / "best.pth")
    done = script("test.py", *words, "--resume", "https://localhost:1/model.pth?download=1",
                  check=False)
    assert "sha256" in refusal(done)
    done = script("test.py", *words, "--resume", tmp_path / "run[2]" / "*.pth", check=False)
    assert "matches no file" in refusal(done)


def test_test_refuses_what_does_not_fit(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    assert "TEST" in refusal(script("test.py", *words, "MODEL.IMG_SIZE", "64", check=False))
    done = script("test.py", *words, "--output", tmp_path, check=False)
    assert "is a folder; name a CSV file in it" in refusal(done)
    only = tmp_path / "only"
    write_dataset(only, [20], splits=("train",))
    done = script("test.py", "--data_dir", only, "--resume", trained, check=False)
    line = refusal(done)
    assert "it has train" in line and line.endswith("; or measure another split with --split")
    done = script("test.py", "--data_dir", only, "--resume", trained, "--calibrate", check=False)
    line = refusal(done)
    assert "has no valid split; it has train" in line and "make a valid list, or name" in line
    assert "measure another split" not in line
    done = script("test.py", *words, "--split", "tset", check=False)
    assert "--split: invalid choice: 'tset' (choose from " in refusal(done)
    write_dataset(only, [20], splits=("valid",))
    shutil.copy(trained, tmp_path / "copy.pth")
    done = script("test.py", "--data_dir", only, "--resume", tmp_path / "copy.pth", "--calibrate",
                  "--cache_dir", tmp_path / "cache", check=False)
    assert "two faces with an exact age; this split has 1" in refusal(done)
    other = torch.load(trained, weights_only=True)
    other["cfg"] = other["cfg"].replace("timm/test_resnet", "timm/resnet34")
    torch.save(other, tmp_path / "other.pth")
    done = script("test.py", "--data_dir", folder, "--resume", tmp_path / "other.pth", check=False)
    assert "resnet34" in refusal(done)


@pytest.mark.parametrize("flag", ["--calibrate", "--report"])
def test_a_folder_that_another_process_writes_to_is_left_alone(folder, trained, tmp_path, flag):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained, run / "best.pth")
    words = ["--data_dir", folder, "--resume", run / "best.pth", "--cache_dir", tmp_path / "cache"]
    words += [flag] if flag == "--calibrate" else [flag, run]
    before = (run / "best.pth").read_bytes()
    with only_writer(run, "wait"):
        line = refusal(script("test.py", *words, check=False))
        assert f"another process writes to '{run}': process {os.getpid()} on " in line
    assert [path.name for path in run.iterdir()] == ["best.pth"]
    assert (run / "best.pth").read_bytes() == before
    script("test.py", *words)


def test_rows_that_a_table_of_predictions_repeats_are_told(tmp_path, recwarn):
    rows = ["photo,age,pred_age", "a.jpg,20,22", "a.jpg,20,31", "b.jpg,30,31"]  # two faces of a.jpg
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(rows) + "\n")
    script("test.py", "--predictions", path)
    assert not recwarn
    path.write_text("\n".join([*rows, *rows[2:], rows[3]]) + "\n")
    script("test.py", "--predictions", path)
    assert str(recwarn.pop(UserWarning).message).startswith(
        "3 of 6 rows repeat another one, such as 'a.jpg'")
    path.write_text("photo,age,pred_age,dataset\na.jpg,20,22,x\na.jpg,20,22,y\n")
    script("test.py", "--predictions", path)
    assert not recwarn


def test_a_report_on_predictions_leaves_another_processs_folder_alone(tmp_path):
    (tmp_path / "mine.csv").write_text("photo,age,pred_age\na.jpg,20,22\nb.jpg,30,31\n")
    words = ["--predictions", tmp_path / "mine.csv", "--report", tmp_path / "out"]
    with only_writer(tmp_path / "out", "wait"):
        line = refusal(script("test.py", *words, check=False))
        assert "another process writes to" in line
    assert not (tmp_path / "out").exists()
    script("test.py", *words)
    assert (tmp_path / "out" / "report.html").is_file()
