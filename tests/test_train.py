"""Training as a user runs it: whole paths on drawn faces, and what train.py refuses."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from faces import TINY, write_dataset, write_list
from scripts import AGES, ROOT, read_log, refusal, script, train, weights

from age_network import OnnxAgeNetwork, TorchAgeNetwork
from batches import build_eval_loader
from checkpoint import load_checkpoint, save_checkpoint
from dataset import FaceDataset, to_pixels
from defaults import ARCHS, load_cfg, parse_cfg
from engine import EpochProgress
from lists import Source, pair_folders, read_faces, read_sources
from losses import gaussian_target
from training import build
from training.onnx_release import export_onnx, sample_crops
from training.release import release_checkpoint
from training.run import Job, Run
from training.teachers import ModelTeachers, find_teachers, teacher_distributions

CPU = torch.device("cpu")


def test_eight_faces_are_learnt_by_heart(folder, tmp_path):
    done = train(folder, tmp_path / "run", *TINY, "AUG.STRENGTH", "0", "TRAIN.EPOCHS", "60",
                 "TRAIN.LR", "0.01", "TRAIN.LR_DECAY_STEP", "40", "TRAIN.BATCH_SIZE", "8")
    assert "drawn" in done.stdout
    tested = script("test.py", "--data_dir", folder, "--resume", tmp_path / "run" / "best.pth",
                    "--output", tmp_path / "p.csv", "--cache_dir", tmp_path / "cache")
    lines = tested.stdout.strip().splitlines()
    assert lines[0] == f"drawn ({folder}/drawn_test_align.csv): 8 test faces"
    assert [line.split(":")[0] for line in lines[-4:]] == ["CA(3)", "CA(5)", "CA(7)", "test mae"]
    mae = float(re.fullmatch(r"test mae: (\d+\.\d{3})", lines[-1])[1])
    assert mae < 1
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns[:5]) == ["photo", "age", "pred_age", "pred_std", "p0"]
    probs = table[[f"p{age}" for age in range(101)]].to_numpy()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probs @ np.arange(101), table["pred_age"], atol=1e-3)
    assert np.abs(table["pred_age"] - table["age"]).mean() == pytest.approx(mae, abs=1e-3)
    assert table["gender"].tolist() == ["male", "female"] * 4
    log = read_log(tmp_path / "run")
    assert [record["epoch"] for record in log] == list(range(1, 61))
    assert [log[at]["lr"] for at in (0, 39, 40)] == pytest.approx([0.01, 0.01, 0.002])
    best = min(record["valid"]["mae"] for record in log)
    assert best == pytest.approx(mae, abs=0.02)
    kept = list((tmp_path / "run").glob("epoch*.pth"))
    assert any(f"_{best:.4f}.pth" in path.name for path in kept)
    share = weights(tmp_path / "run" / "best.pth")["age_share"].numpy()
    assert share @ np.arange(101) == pytest.approx(table["age"].mean(), abs=0.1)


def test_tensorboard_shows_curves_and_pictures(folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(folder, tmp_path / "run", "--tensorboard", tmp_path / "tf_log", *TINY, "TRAIN.EPOCHS",
          "1")
    found = {}
    for part in ("train", "valid"):
        (run,) = (tmp_path / "tf_log").glob(f"*/{part}")
        events = EventAccumulator(str(run)).Reload()
        found[part] = events.Tags()
        for name in ("loss", "kl", "l1", "mae", "ca3", "ca5", "ca7"):
            assert name in found[part]["scalars"]
    assert {"lr", "images_per_s"} <= set(found["train"]["scalars"])
    assert "augmented_faces" in found["train"]["images"]
    assert {"predicted_against_true", "distributions"} <= set(found["valid"]["images"])


def test_exact_ages_and_intervals_train_together(folder, tmp_path):
    other = tmp_path / "other"
    write_dataset(other, AGES, name="binned", seed=50, columns={
        "age_min": [3, 10, 20, 30, 40, 50, 60, 70],
        "age_max": [9, 19, 29, 39, 49, 59, 69, 100]})
    done = script("train.py", "--data_dir", folder, other, "--dataset", "drawn", "binned",
                  "--checkpoint", tmp_path / "run", "--cache_dir", tmp_path / "cache", *TINY,
                  "TRAIN.EPOCHS", "1")
    assert "drawn (" in done.stdout
    assert "binned (" in done.stdout
    valid = read_log(tmp_path / "run")[0]["valid"]
    assert {"mae", "ca5", "interval_accuracy", "interval_distance"} <= valid.keys()
    tested = script("test.py", "--data_dir", other, "--resume", tmp_path / "run" / "best.pth",
                    "--split", "valid", "--cache_dir", tmp_path / "cache")
    assert "in the right interval" in tested.stdout


def test_a_network_of_binary_outputs_is_used_as_any_other(folder, tmp_path):
    run, data = tmp_path / "run", ["--data_dir", folder, "--cache_dir", tmp_path / "cache"]
    train(folder, run, *TINY, "AUG.STRENGTH", "0", "TRAIN.EPOCHS", "20", "TRAIN.LR", "0.01",
          "LOSS.NAME", "or_cnn", "TRAIN.EMA_DECAY", "0.5")
    log = read_log(run)
    assert log[-1]["valid"]["or_cnn"] == log[-1]["valid"]["loss"] < log[0]["valid"]["loss"]
    best = run / "best.pth"
    assert weights(best)["model"]["head.weight"].shape[0] == 100

    def test_mae(path):
        return float(script("test.py", *data, "--resume", path).stdout.split()[-1])

    mae = min(record["valid"]["mae"] for record in log)
    assert test_mae(best) == pytest.approx(mae, abs=1e-3)
    script("test.py", *data, "--resume", best, "--calibrate", "--split", "train")
    assert min(weights(best)["temperature"]) > 0
    release_checkpoint([best], tmp_path / "released.pth")
    assert test_mae(tmp_path / "released.pth") == pytest.approx(test_mae(best), abs=0.1)
    export_onnx(best, tmp_path / "age.onnx", half=False)
    crops = sample_crops(0.0, 32)
    np.testing.assert_allclose(OnnxAgeNetwork(tmp_path / "age.onnx")(crops),
                               TorchAgeNetwork(best)(crops), atol=1e-5)


def test_a_network_learns_from_what_others_predict(folder, trained, tmp_path):
    predicted = tmp_path / "teachers" / "one.csv"
    words = ["--data_dir", folder, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--split", "train", "--resume", trained, "--output", predicted)
    table = pd.read_csv(predicted)
    bins = [f"p{age}" for age in range(101)]
    table[bins] = 0.0
    table["p90"] = 1.0  # far from every label
    table.to_csv(predicted.with_name("two.csv"), index=False)

    def last_of(run, pattern, share):
        told = train(folder, tmp_path / run, *TINY, "AUG.STRENGTH", "0", "TRAIN.LR", "0.01",
                     "TRAIN.BATCH_SIZE", "8", "TRAIN.EPOCHS", "50", "LOSS.NAME", "kl",
                     "LOSS.TEACHER", pattern, "LOSS.TEACHER_WEIGHT", share).stdout
        assert "teachers: " in told and str(predicted.with_name("two.csv")) in told
        script("test.py", *words, "--resume", tmp_path / run / "last.pth", "--output",
               tmp_path / f"{run}.csv")
        log = read_log(tmp_path / run)
        assert "teacher" in log[-1]["train"] and "teacher" not in log[-1]["valid"]
        assert log[-1]["train"]["teacher"] < log[0]["train"]["teacher"]
        return pd.read_csv(tmp_path / f"{run}.csv")

    alone = last_of("alone", predicted.with_name("two.csv"), 1)
    assert (alone["pred_age"] > 85).all()
    both = last_of("both", predicted.parent / "*.csv", 0.5)
    assert both["p90"].between(0.15, 0.4).all()  # half of the loss, half of the two teachers

    pd.read_csv(predicted)[1:].to_csv(tmp_path / "short.csv", index=False)
    done = train(folder, tmp_path / "refused", *TINY, "LOSS.TEACHER", tmp_path / "short.csv",
                 check=False)
    assert "for 1 of 8 training faces, such as 'drawn_0.png'" in refusal(done)
    done = train(folder, tmp_path / "refused", *TINY, "LOSS.TEACHER", predicted.with_name(
        "two.csv"), "DATA.AGE_MAX", "80", check=False)  # all of its mass lies at 90
    assert "for 8 of 8 training faces" in refusal(done)
    table.drop(columns="dataset").to_csv(tmp_path / "nameless.csv", index=False)
    shutil.copytree(folder, tmp_path / "other")
    for path in (tmp_path / "other").glob("drawn_*.csv"):
        path.rename(path.with_name(path.name.replace("drawn", "other")))
    done = script("train.py", "--data_dir", folder, tmp_path / "other", "--checkpoint",
                  tmp_path / "refused", *TINY, "LOSS.TEACHER", tmp_path / "nameless.csv",
                  check=False)
    assert "no column dataset, and 'drawn_0.png' is in two" in refusal(done)


def test_a_table_teaches_each_face_of_a_photo_its_own_age(tmp_path):
    bins = np.arange(101)
    for name, ages in (("a", [5, 25]), ("b", [70, 90])):  # two data sets of one name
        write_dataset(tmp_path / name, ages, splits=("train",))
    rows = write_dataset(tmp_path / "c", [30], splits=("train",))
    write_list(tmp_path / "c" / "drawn_train_align.csv", [  # and two faces of one photo
        rows[0], rows[0] | {"age": 60, "box1": 25.0}])

    def faces_of(*names):
        return read_sources([Source(tmp_path / name, "drawn", tmp_path / name) for name in names],
                            "train", load_cfg())

    def write_table(faces):
        table = faces[["dataset", "photo", "age"]].assign(pred_age=faces["age"])
        probs = pd.DataFrame((faces["age"].to_numpy()[:, None] == bins).astype(float),
                             columns=[f"p{age}" for age in bins])  # it is always right
        pd.concat([table, probs], axis=1).to_csv(tmp_path / "t.csv", index=False)

    for names in (("a", "b"), ("c",)):
        faces = faces_of(*names)
        write_table(faces)
        taught = teacher_distributions([tmp_path / "t.csv"], faces, bins).numpy()
        assert (taught @ bins).tolist() == faces["age"].tolist()
    other = faces_of("c")[::-1].reset_index(drop=True)
    with pytest.raises(ValueError, match=r"other faces of 'drawn_0\.png'.*or in another order"):
        teacher_distributions([tmp_path / "t.csv"], other, bins)
    write_table(faces_of("a", "b"))
    for names in (("b", "a"), ("b",), ("a",)):
        with pytest.raises(ValueError, match="other faces of 'drawn_"):
            teacher_distributions([tmp_path / "t.csv"], faces_of(*names), bins)


def test_binary_outputs_learn_from_a_teacher(folder, tmp_path):
    ages = torch.tensor(AGES, dtype=torch.float32)
    table = pd.DataFrame(gaussian_target(ages, torch.arange(101), 3.0).numpy(),
                         columns=[f"p{age}" for age in range(101)])
    table.insert(0, "photo", [f"drawn_{number}.png" for number in range(len(AGES))])
    table.insert(1, "age", AGES)
    table.insert(2, "pred_age", AGES)
    table.to_csv(tmp_path / "teacher.csv", index=False)
    train(folder, tmp_path / "run", *TINY, "AUG.STRENGTH", "0", "TRAIN.LR", "0.01",
          "TRAIN.BATCH_SIZE", "8", "TRAIN.EPOCHS", "60", "LOSS.NAME", "or_cnn",
          "LOSS.TEACHER", tmp_path / "teacher.csv")
    assert min(record["valid"]["mae"] for record in read_log(tmp_path / "run")) < 2


def test_a_network_learns_from_models_that_see_what_it_sees(folder, trained, tmp_path):
    teachers = tmp_path / "teachers"
    teachers.mkdir()
    checkpoint = load_checkpoint(trained)
    for age in (60, 90):
        checkpoint["model"]["head.weight"].zero_()
        checkpoint["model"]["head.bias"].fill_(-10.0)[age] = 10.0
        save_checkpoint(teachers / f"{age}.pth", checkpoint)
    told = train(folder, tmp_path / "run", *TINY, "TRAIN.LR", "0.01", "TRAIN.BATCH_SIZE", "8",
                 "TRAIN.EPOCHS", "50", "LOSS.TEACHER", teachers, "LOSS.TEACHER_WEIGHT", "1").stdout
    assert f"teachers: {teachers / '60.pth'}, {teachers / '90.pth'}" in told
    log = read_log(tmp_path / "run")
    assert "teacher" in log[-1]["train"] and "teacher" not in log[-1]["valid"]
    predicted = tmp_path / "predicted.csv"
    script("test.py", "--data_dir", folder, "--cache_dir", tmp_path / "cache", "--resume",
           tmp_path / "run" / "last.pth", "--output", predicted)
    assert (pd.read_csv(predicted)[["p60", "p90"]] > 0.25).all(axis=None)

    def refused(*opts):
        return refusal(train(folder, tmp_path / "refused", *TINY, *opts, check=False))

    model = teachers / "60.pth"
    for key, value in (("MODEL.IMG_SIZE", "64"), ("DATA.MARGIN", "0.1"), ("DATA.AGE_MAX", "90")):
        assert re.search(rf"60.pth' has {key} \S+, not {value}; let it write a table", refused(
            "LOSS.TEACHER", model, key, value))
    assert "60.pth' predicts the ages 0 to 100, not 0 to 110; choose another teacher" in refused(
        "LOSS.TEACHER", model, "DATA.AGE_MAX", "110")
    for gone in ("none.pth", "none", "none*.csv"):
        assert f"LOSS.TEACHER '{gone}': no such file or folder; give the path of models" in \
            refused("LOSS.TEACHER", gone)
    assert "'.' is a folder without tables (.csv) and models" in refused("LOSS.TEACHER", ".")
    best = tmp_path / "run" / "best.pth"
    message = refusal(train(folder, best.parent, *TINY, "LOSS.TEACHER", best.parent, check=False))
    assert f"LOSS.TEACHER '{best}' lies in the folder of this run" in message
    shutil.copy(predicted, teachers / "table.csv")
    assert f"names tables ({teachers / 'table.csv'}) and models ({model}); name either, such as " \
        f"'{teachers / '*.pth'}'" in refused("LOSS.TEACHER", teachers / "*")
    assert find_teachers(str(teachers)) == ([str(teachers / "table.csv")], [])
    shutil.copy(predicted, tmp_path / "run" / "predicted.csv")
    assert find_teachers(str(best.parent)) == ([], [str(best)])  # of a run, whatever lies beside it


@pytest.mark.parametrize(("label", "column", "values"), [
    ("vote_std", "age_std", [""] * 7 + ["2.5"]), ("votes", "votes", [""] * 7 + ["70:3 80:1"])])
def test_a_label_of_votes_that_no_face_has_is_told(tmp_path, recwarn, label, column, values):
    words = [*TINY, "TRAIN.EPOCHS", "1", "LOSS.LABEL", label]
    warning = f"LOSS.LABEL {label}: no training face has {column}, so all labels are Gaussians"
    write_dataset(tmp_path / "data", AGES, columns={column: values})
    train(tmp_path / "data", tmp_path / "run", *words)
    assert not any(warning in str(one.message) for one in recwarn)
    write_dataset(tmp_path / "data", AGES, columns={column: [""] * 8})
    train(tmp_path / "data", tmp_path / "run", *words)
    assert any(warning in str(one.message) for one in recwarn)


def test_a_teacher_may_have_the_name_of_a_glob(tmp_path):
    for name in ("t[1].pth", "t1.pth", "t2.pth"):
        (tmp_path / name).touch()
    assert find_teachers(str(tmp_path / "t[1].pth")) == ([], [str(tmp_path / "t[1].pth")])
    assert find_teachers(str(tmp_path / "t[12].pth")) == (
        [], [str(tmp_path / name) for name in ("t1.pth", "t2.pth")])


def test_the_speed_of_training_includes_the_teachers(folder, trained, tmp_path, monkeypatch):
    calls = []

    def counted(teachers, pixels, forward=ModelTeachers.forward):
        calls.append(len(pixels))
        return forward(teachers, pixels)

    monkeypatch.setattr(ModelTeachers, "forward", counted)
    told = script("benchmarks/train_speed.py", "--data_dir", folder, "--cache_dir",
                  tmp_path / "cache", "--device", "cpu", "--stretches", "1", "--steps", "3", *TINY,
                  "LOSS.TEACHER", trained).stdout
    assert re.search(r"^full: median \d+\.\d images/s", told, re.MULTILINE)
    assert calls == [4] * 2 * (2 + 3)  # in both loops, two steps to warm up and three


def test_model_teachers_give_the_mean_of_their_calibrated_distributions(trained, tmp_path):
    paths = []
    for number, temperature in enumerate(([0.5, 3.0], 2.0)):
        checkpoint = load_checkpoint(trained)
        checkpoint["model"]["head.bias"] += torch.randn(101, generator=torch.manual_seed(number))
        paths.append(tmp_path / f"{number}.pth")
        save_checkpoint(paths[-1], checkpoint | {"temperature": temperature})
    crops = sample_crops(0.0, 32)[:8]
    expected = np.mean([TorchAgeNetwork(path)(crops) for path in paths], axis=0)
    teachers = ModelTeachers(list(map(str, paths)), parse_cfg(checkpoint["cfg"]))
    found = teachers(to_pixels(np.stack(crops)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found.requires_grad


def test_each_split_is_used_for_what_it_is_for(tmp_path, recwarn):
    rows = write_dataset(tmp_path / "data", AGES, splits=())
    for split, chosen in (("train", rows[:4]), ("valid", rows[4:6]), ("test", rows[6:7])):
        write_list(tmp_path / "data" / f"drawn_{split}_align.csv", chosen)
    run = tmp_path / "run"
    done = train(tmp_path / "data", run, *TINY, "TRAIN.EPOCHS", "1")
    assert "4 train, 2 valid faces" in done.stdout
    assert not any("trained on" in str(warning.message) for warning in recwarn)
    assert done.stdout.splitlines()[-1].endswith("run/best.pth")
    words = ["--data_dir", tmp_path / "data", "--resume", run / "best.pth", "--cache_dir",
             tmp_path / "cache"]
    [log] = read_log(run)
    valid = script("test.py", *words, "--split", "valid", "--output", tmp_path / "valid.csv")
    assert float(valid.stdout.rsplit(" ", 1)[1]) == pytest.approx(log["valid"]["mae"], abs=1e-3)
    script("test.py", *words, "--output", tmp_path / "test.csv")
    assert pd.read_csv(tmp_path / "valid.csv")["photo"].tolist() == ["drawn_4.png", "drawn_5.png"]
    assert pd.read_csv(tmp_path / "test.csv")["photo"].tolist() == ["drawn_6.png"]
    with pytest.warns(UserWarning, match="fitted to 2 faces only"):
        assert "fitted on 2 faces" in script("test.py", *words, "--calibrate").stdout
    done = script("test.py", *words, "--calibrate", "--split", "test", check=False)
    assert "leave --split out" in refusal(done)


def test_what_an_exclusion_list_leaves_out_is_told(folder, tmp_path):
    listed, words = tmp_path / "out.csv", [*TINY, "TRAIN.EPOCHS", "1"]
    listed.write_text("photo\ndrawn_0.png\n")
    done = train(folder, tmp_path / "run", *words, "DATA.EXCLUDE", listed)
    assert "DATA.EXCLUDE leaves out 2 of 16 faces" in done.stdout  # one of train and of valid
    done = script("test.py", "--data_dir", folder, "--resume", tmp_path / "run" / "best.pth",
                  "--cache_dir", tmp_path / "cache")
    assert "DATA.EXCLUDE leaves out 1 of 8 faces" in done.stdout
    listed.write_text("photo\ndrawn_0\n")
    with pytest.warns(UserWarning, match="out.csv' names no photo of these lists"):
        done = train(folder, tmp_path / "other", *words, "DATA.EXCLUDE", listed)
    assert "DATA.EXCLUDE leaves out 0 of 16 faces" in done.stdout


def test_one_data_set_in_two_folders_without_a_test_split(tmp_path):
    for part in ("one", "two"):
        write_dataset(tmp_path / part, AGES, splits=("train", "valid"))
    with pytest.warns(UserWarning, match=r"16 of 16 validation faces .*/one/drawn_0\.png: "):
        done = script("train.py", "--data_dir", tmp_path / "one", tmp_path / "two",
                      "--checkpoint", tmp_path / "run", "--cache_dir", tmp_path / "cache", *TINY,
                      "TRAIN.EPOCHS", "1")
    assert done.stdout.count("8 train, 8 valid faces") == 2
    command = done.stdout.splitlines()[-1].removeprefix("test it with: python ")
    assert command.endswith("--split valid")
    tested = script(*shlex.split(command))
    assert tested.stdout.count(": 8 valid faces") == 2


def test_the_best_epoch_is_chosen_by_what_most_faces_have(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, AGES, columns={"age_min": ["", *(age - 4 for age in AGES[1:])],
                                         "age_max": ["", *(age + 4 for age in AGES[1:])]})
    told = train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1").stdout
    assert "best val_interval_distance" in told


def test_a_clipped_step_has_the_length_asked_for(folder, trained, tmp_path):
    train(folder, tmp_path / "run", *TINY, "MODEL.PRETRAINED", trained, "TRAIN.OPT", "sgd",
          "TRAIN.LR", "0.5", "TRAIN.MOMENTUM", "0.0", "TRAIN.WEIGHT_DECAY", "0.0",
          "TRAIN.CLIP_NORM", "0.01", "TRAIN.BATCH_SIZE", "8", "TRAIN.EPOCHS", "1")
    before, after = (weights(path)["model"] for path in (trained, tmp_path / "run" / "last.pth"))
    steps = [after[name] - values for name, values in before.items()
             if values.is_floating_point() and "running" not in name]
    assert torch.cat([step.flatten() for step in steps]).norm() == pytest.approx(0.005, rel=1e-3)


def test_a_second_stage_starts_from_the_best_model_of_the_first(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("TRAIN:\n  EPOCHS: 1\n  WEIGHT_DECAY: 0.5\n")
    train(folder, tmp_path / "first", "--cfg", recipe, *TINY)
    start = tmp_path / "first" / "best.pth"
    train(folder, tmp_path / "second", "--cfg", recipe, *TINY, "MODEL.IMG_SIZE", "64",
          "MODEL.PRETRAINED", start, "TRAIN.LR", "1e-9")
    end = weights(tmp_path / "second" / "best.pth")
    cfg = parse_cfg(end["cfg"])
    assert (cfg.MODEL.IMG_SIZE, cfg.TRAIN.WEIGHT_DECAY) == (64, 0.5)
    for name, tensor in weights(start)["model"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(end["model"][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["train.py", "test.py"])
def test_help_lists_flags(name):
    text = script(name, "--help").stdout
    assert "--data_dir" in text
    assert "KEY VALUE" in text


def test_help_lists_all_architectures_without_waiting_for_torch():
    program = ("import runpy, sys\n"
               "try: runpy.run_path('train.py', run_name='__main__')\n"
               "except SystemExit: print('torch' in sys.modules)")
    text = subprocess.run([sys.executable, "-c", program, "--help"], cwd=ROOT, text=True,
                          check=True, capture_output=True).stdout
    assert text.splitlines()[-1] == "False"
    assert all(arch in text for arch in ARCHS)


@pytest.mark.parametrize(("words", "named"), [
    (["TRAIN.LRR", "1"], "TRAIN.LR"),
    (["--bogus", "1"], "--bogus"),
    (["MODEL.ARCH", "resnet51"], "resnet50"),
    (["MODEL.ARCH", "vgg16", "MODEL.IMG_SIZE", "8"], "MODEL.IMG_SIZE"),
    (["--resume", "gone.pth"], "gone.pth"),
    (["--cfg", "gone.yaml"], "gone.yaml"),
    (["--multi_gpu"], "torchrun"),
    (["--dataset", "other"], "other_train_align.csv"),
    (["DATA.EXCLUDE", "gone.csv"], "gone.csv"),
    (["LOSS.TEACHER", "gone.csv"], "gone.csv"),
])
def test_train_refuses_bad_input_in_one_line(folder, tmp_path, words, named):
    done = train(folder, tmp_path / "run", *TINY, *words, check=False)
    assert named in refusal(done)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_too_small_for_the_network_is_named(folder, tmp_path):
    for amp in ("off", "auto"):  # auto takes a few steps before the training
        done = train(folder, tmp_path / "run", *TINY, "TRAIN.BATCH_SIZE", "1", "TRAIN.AMP", amp,
                     check=False)
        assert "TRAIN.BATCH_SIZE must give each process two faces" in refusal(done)


@pytest.mark.parametrize("flag", ["--checkpoint", "--tensorboard"])
def test_a_folder_that_is_a_file_is_named_before_anything_is_read(folder, tmp_path, flag):
    (tmp_path / "file").touch()
    done = train(folder, tmp_path / "run", *TINY, flag, tmp_path / "file" / "deeper", check=False)
    assert f"{flag} '{tmp_path / 'file' / 'deeper'}': '{tmp_path / 'file'}' is not a folder" in \
        refusal(done)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    done = train(folder, tmp_path / "run", *TINY, flag, tmp_path / "link", check=False)
    assert "is not a folder" in refusal(done)


@pytest.mark.parametrize(("device", "problem"), [
    ("cuda:77", "--device cuda:77: no such device found; use --device cpu"),
    ("mps:7", "unknown device 'mps:7'; choose auto, cpu, cuda, cuda:N or mps"),
    ("tpu", "unknown device 'tpu'; choose auto, cpu, cuda, cuda:N or mps")])
def test_a_missing_device_is_named(folder, tmp_path, device, problem):
    done = train(folder, tmp_path / "run", *TINY, "--device", device, check=False)
    assert problem in refusal(done)


def test_bad_images_end_the_run_at_the_start(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    content = (broken / "drawn_2.png").read_bytes()
    (broken / "drawn_2.png").write_bytes(content[:200])
    assert "drawn_2.png" in refusal(train(broken, tmp_path / "run", *TINY, check=False))
    done = train(broken, tmp_path / "run", *TINY, "DATA.CACHE", "False", check=False)
    assert "drawn_2.png" in refusal(done)


def test_a_broken_photo_met_in_a_worker_ends_in_one_line(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    whole = (data / "drawn_3.png").read_bytes()
    (data / "drawn_3.png").write_bytes(whole[:len(whole) // 2])
    done = train(data, tmp_path / "run", *TINY, "DATA.CACHE", "False", "TRAIN.WORKERS", "1",
                 "TRAIN.EPOCHS", "1", check=False)
    assert "drawn_3.png: image file is truncated" in refusal(done)


def test_each_epoch_shows_every_face_once_in_a_new_order_augmented_anew(
        folder, tmp_path, monkeypatch):
    seen = {True: [], False: []}  # of training and of validation: (epoch, index, pixels)

    def noted(data, keys, batch=FaceDataset.batch):
        made = batch(data, keys)
        seen[data.train] += [(*key, pixels) for key, pixels in
                             zip(keys, made["pixels"], strict=True)]
        return made

    monkeypatch.setattr(FaceDataset, "batch", noted)
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "2")
    first, second = seen[True][:8], seen[True][8:]
    assert [epoch for epoch, *_ in seen[True]] == [0] * 8 + [1] * 8
    orders = [[index for _, index, _ in epoch] for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8)) and orders[0] != orders[1]
    plain = {index: pixels for _, index, pixels in seen[False]}
    once, again = ({index: pixels for _, index, pixels in epoch} for epoch in (first, second))
    for index, pixels in plain.items():
        assert not torch.equal(once[index], pixels)
        assert not torch.equal(once[index], again[index])


def test_a_training_weighs_rare_ages_as_its_config_says(tmp_path):
    write_dataset(tmp_path, [20] * 9 + [80], splits=("train",))
    factors = []
    for power in ("0", "0.5"):
        cfg = load_cfg(opts=[*TINY, "LOSS.NAME", "ce", "LOSS.RARE_AGE_POWER", power,
                             "DATA.CACHE", "False"])
        faces = read_faces(Source(tmp_path, "drawn", tmp_path), "train", cfg)
        faces = pd.concat([faces] * 20, ignore_index=True)
        loader = build.build_train_loader(faces, cfg, CPU)
        trainer = build.build_trainer(cfg, CPU, build.build_network(cfg, CPU), loader)
        factors.append(trainer.criterion(torch.zeros(200, 101), loader.dataset.labels)["loss"])
    weights = factors[1] / factors[0]
    assert (weights[9] / weights[0]).item() == pytest.approx(3, rel=0.1)  # nine times rarer
    assert weights.mean().item() == pytest.approx(1, rel=1e-3)


def test_the_best_epoch_is_chosen_as_the_model_is_used(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--cache_dir", tmp_path / "cache", "--split", "valid"]
    maes = {}
    for opts in ([], ["TEST.TTA", "True"], ["TEST.DECODE", "median"]):
        run = tmp_path / "_".join(["run", *opts])
        train(folder, run, *TINY, "MODEL.PRETRAINED", trained, "TRAIN.LR", "1e-9",
              "TRAIN.EPOCHS", "1", *opts)
        [record] = read_log(run)
        told = script("test.py", *words, "--resume", run / "best.pth").stdout
        assert float(told.rsplit(" ", 1)[1]) == pytest.approx(record["valid"]["mae"], abs=1e-3)
        maes[tuple(opts)] = record["valid"]["mae"]
    assert len({round(mae, 3) for mae in maes.values()}) == 3


def test_the_figures_of_an_epoch_are_of_the_faces_that_it_predicted(folder, tmp_path):
    cfg = load_cfg(None, TINY)
    sources = pair_folders([folder], None, None)
    loaders = {"train": build.build_train_loader(read_sources(sources, "train", cfg), cfg, CPU,
                                                 tmp_path),
               "valid": build_eval_loader(read_sources(sources, "valid", cfg), cfg, CPU, tmp_path)}
    trainer = build.build_trainer(cfg, CPU, build.build_network(cfg, CPU), loaders["train"])
    run = Run(Job(sources, CPU, tmp_path / "run", []), cfg, trainer, loaders)
    ages = loaders["train"].dataset.labels["age"]
    index = torch.tensor([5, 2, 7, 0])
    progress = EpochProgress(steps=1, lr=0.1, sums={"loss": 8.0}, index=index,
                             pred_ages=ages[index] + torch.tensor([1.0, -2, 3, -4]))
    record = run.record(progress.gather(), ages.numpy(), {"loss": torch.ones(8)})
    assert record["train"]["mae"] == pytest.approx(2.5) and record["train"]["loss"] == 2


def test_a_teacher_of_more_ages_teaches_those_of_the_student(tmp_path):
    write_dataset(tmp_path, [15, 18], splits=("train",))
    faces = read_sources([Source(tmp_path, "drawn", tmp_path)], "train", load_cfg())
    probs = np.zeros((2, 31))
    probs[0, [15, 16, 30]], probs[1, 18] = (0.6, 0.2, 0.2), 1
    table = faces[["photo", "age"]].assign(pred_age=faces["age"])
    pd.concat([table, pd.DataFrame(probs, columns=[f"p{age}" for age in range(31)])],
              axis=1).to_csv(tmp_path / "t.csv", index=False)
    taught = teacher_distributions([tmp_path / "t.csv"], faces, range(10, 21)).numpy()
    expected = np.zeros((2, 11))
    expected[0, [5, 6]], expected[1, 8] = (0.75, 0.25), 1
    np.testing.assert_allclose(taught, expected, atol=1e-6)
