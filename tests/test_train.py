"""Training and testing as a user runs them: whole paths on drawn faces, and what they refuse."""

import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from faces import TINY, write_dataset, write_list

import engine
import metrics
from defaults import parse_cfg
from training import run

ROOT = Path(__file__).parent.parent
AGES = [5, 15, 25, 35, 45, 55, 65, 75]
STEADY = [*TINY, "TRAIN.DETERMINISTIC", "True", "TRAIN.EMA_DECAY", "0.9",
          "MODEL.DROPOUT", "0.2", "TRAIN.OPT", "adamw", "TRAIN.SCHEDULE", "cosine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, AGES, splits=("train", "valid", "test"),
                  columns={"gender": ["male", "female"] * 4})
    return folder


def script(name, *words, check=True):
    """Run a script in this process, which spares it the seconds of importing torch."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(ROOT / name), *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
        torch.use_deterministic_algorithms(False)
    done = subprocess.CompletedProcess(name, code, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def train(folder, run, *words, check=True):
    return script("train.py", "--data_dir", folder, "--checkpoint", run, "--cache_dir",
                  run.parent / "cache", *words, check=check)


def start_training(folder, run, *words, launcher=(), **options):
    """The same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), "--data_dir", str(folder),
         "--checkpoint", str(run), "--cache_dir", str(run.parent / "cache"), *words],
        cwd=ROOT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


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
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == list(range(1, 61))
    assert [log[at]["lr"] for at in (0, 39, 40)] == pytest.approx([0.01, 0.01, 0.002])
    best = min(record["valid"]["mae"] for record in log)
    assert best == pytest.approx(mae, abs=0.02)
    kept = list((tmp_path / "run").glob("epoch*.pth"))
    assert any(f"_{best:.4f}.pth" in path.name for path in kept)


def test_tensorboard_shows_curves_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = {}
    for part in ("train", "valid"):
        (run,) = (trained.parent.parent / "tf_log").glob(f"*/{part}")
        events = EventAccumulator(str(run)).Reload()
        found[part] = events.Tags()
        for name in ("loss", "kl", "l1", "mae", "ca3", "ca5", "ca7"):
            assert name in found[part]["scalars"]
    assert {"lr", "images_per_s"} <= set(found["train"]["scalars"])
    assert "augmented_faces" in found["train"]["images"]
    assert {"predicted_against_true", "distributions"} <= set(found["valid"]["images"])


def weights(path):
    return torch.load(path, weights_only=True)


# Asked after each of an epoch's two steps and after the epoch.
@pytest.mark.parametrize(("askings", "told"), [
    (3, "resumed after 1 epochs and 0 batches"), (4, "resumed after 1 epochs and 1 batches")])
def test_two_epochs_equal_one_stopped_and_resumed_to_the_bit(folder, tmp_path, monkeypatch,
                                                             askings, told):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *STEADY, "TRAIN.EPOCHS", "2")

    @contextmanager
    def stop_after():
        asked = itertools.count(1)
        yield lambda: next(asked) >= askings

    with monkeypatch.context() as patched:
        patched.setattr(run, "stop_on_interrupt", stop_after)
        assert train(folder, parts, *STEADY, "TRAIN.EPOCHS", "2", check=False).returncode == 130
    assert told in train(folder, parts, "--resume", parts / "last.pth").stdout
    mine, theirs = weights(whole / "last.pth"), weights(parts / "last.pth")
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert mine["best"] == theirs["best"]


def test_a_run_that_is_killed_while_it_validates_loses_no_epoch(folder, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *STEADY, "TRAIN.EPOCHS", "2")

    def killed(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(run, "predict", killed)
        assert train(folder, parts, *STEADY, "TRAIN.EPOCHS", "2", check=False).returncode == 137
    done = train(folder, parts, "--resume", parts / "last.pth")
    assert "resumed after 0 epochs and 2 batches" in done.stdout
    mine, theirs = weights(whole / "last.pth"), weights(parts / "last.pth")
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert mine["best"] == theirs["best"]


def test_two_processes_go_on_where_one_was_killed_while_it_validated(folder, tmp_path, monkeypatch):
    def killed(*_):
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(run, "predict", killed)
        train(folder, tmp_path / "run", *STEADY, "TRAIN.EPOCHS", "1", check=False)
    process = start_training(folder, tmp_path / "run", "--resume", tmp_path / "run" / "last.pth",
                             launcher=("-m", "torch.distributed.run", "--nproc_per_node=2"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "resumed after 0 epochs and 2 batches" in out and "epoch 01" in out
    [record] = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert record["train"]["loss"] > 0 and "mae" in record["train"]


@pytest.mark.parametrize("batch_size", ["4", "8"])  # of eight faces: two steps an epoch, and one
def test_broken_weights_replace_no_checkpoint(folder, tmp_path, monkeypatch, batch_size):
    run = tmp_path / "run"
    words = ["TRAIN.BATCH_SIZE", batch_size, "TRAIN.EPOCHS"]
    train(folder, run, *TINY, "TRAIN.OPT", "sgd", "TRAIN.LR", "0.001", *words, "1")
    good = (run / "best.pth").read_bytes()
    for rate in ("1e30", "1e38"):  # weights that are huge, and that are no numbers
        again = ["--resume", run / "last.pth", "TRAIN.LR", rate, *words, "3"]
        assert "diverged" in refusal(train(folder, run, *again, check=False))
        assert (run / "last.pth").read_bytes() == good
    with monkeypatch.context() as patched:
        patched.setattr(run, "stop_on_interrupt", lambda: nullcontext(lambda: True))
        patched.setattr(engine.Trainer, "step", broken_step)
        done = train(folder, run, *again, check=False)
    assert done.returncode == (130 if batch_size == "4" else 2)
    assert "last.pth is left as it was" in done.stdout
    assert (run / "last.pth").read_bytes() == good


def broken_step(trainer, batch, step=engine.Trainer.step):
    parts = step(trainer, batch)
    with torch.no_grad():
        trainer.model.head.bias[0] = torch.nan
    return parts


def test_a_run_that_diverges_ends_and_keeps_its_best(folder, tmp_path):
    run = tmp_path / "run"
    words = (*TINY, "TRAIN.OPT", "sgd", "TRAIN.LR", "1e30")
    error = refusal(train(folder, run, *words, check=False))
    assert "after epoch 1" in error and "TRAIN.LR than 1e+30" in error and "resume" not in error
    assert not list(run.glob("*.pth"))
    train(folder, run, *TINY, "TRAIN.OPT", "sgd", "TRAIN.LR", "0.001", "TRAIN.EPOCHS", "1")
    good = (run / "best.pth").read_bytes()
    error = refusal(train(folder, run, "--resume", run / "last.pth", "TRAIN.LR", "1e30",
                          "TRAIN.EPOCHS", "3", check=False))
    assert f"from --resume {run / 'best.pth'}" in error
    assert (run / "best.pth").read_bytes() == (run / "last.pth").read_bytes() == good
    train(folder, run, "--resume", run / "best.pth", "TRAIN.EPOCHS", "2")


def test_a_resumed_run_chooses_the_precision_of_its_own_device(folder, tmp_path):
    run = tmp_path / "run"
    words = (*TINY, "TRAIN.AMP", "auto", "TRAIN.DETERMINISTIC", "True", "TRAIN.EPOCHS", "1")
    train(folder, run, *words)
    stored = weights(run / "last.pth")
    assert (stored["device"], stored["amp"]) == ("cpu", "off")
    for device, amp in (("cpu", "bf16"), ("cuda", "off")):
        torch.save(stored | {"device": device, "amp": "bf16"}, run / "other.pth")
        done = train(folder, run, "--resume", run / "other.pth", "TRAIN.EPOCHS", "2")
        assert f"precision {amp}" in done.stdout


def test_the_log_forgets_epochs_that_were_gone_back_before(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "3")
    first = next(run.glob("epoch001_*.pth"))
    with (run / "log.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tra')  # killed in a write
    train(folder, run, "--resume", first, "TRAIN.EPOCHS", "2")
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def interrupt_after(process, run, epochs, interrupt=lambda process: process.send_signal(
        signal.SIGINT)):
    """Ctrl-C once the log shows the epochs; returns what was printed."""
    deadline = time.time() + 120
    log = run / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= epochs):
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    interrupt(process)
    return process.communicate(timeout=120)[0]


def test_ctrl_c_in_the_middle_of_an_epoch_loses_nothing(folder, tmp_path):
    from checkpoint import load_checkpoint
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*STEADY, "TRAIN.EPOCHS", "20", "TRAIN.BATCH_SIZE", "2"]
    train(folder, whole, *words)
    process = start_training(folder, broken, "--device", "cpu", *words)
    printed = interrupt_after(process, broken, epochs=3)
    assert process.returncode == 130
    assert f"--resume {broken / 'last.pth'}" in printed
    assert "--device cpu" in printed
    assert load_checkpoint(broken / "last.pth")["epochs_done"] < 20
    train(folder, broken, "--resume", broken / "last.pth")
    torch.testing.assert_close(weights(whole / "last.pth")["model"],
                               weights(broken / "last.pth")["model"], rtol=0, atol=0)


def test_a_termination_of_all_processes_loses_nothing(folder, tmp_path):
    # As a job scheduler or service manager stops a job: the loader's workers are told as well.
    run = tmp_path / "run"
    process = start_training(folder, run, *TINY, "TRAIN.EPOCHS", "1000", "TRAIN.WORKERS", "2",
                             start_new_session=True)
    printed = interrupt_after(process, run, 1, lambda process: os.killpg(process.pid,
                                                                         signal.SIGTERM))
    assert process.returncode == 130
    assert f"--resume {run / 'last.pth'}" in printed


def test_a_resumed_run_takes_the_options_it_is_given(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, *STEADY, "TRAIN.LR", "0.004", "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "4")
    resume = ["train.py", "--data_dir", folder, "--resume", run / "last.pth", "--cache_dir",
              tmp_path / "cache", "TRAIN.EPOCHS", "2"]
    for words, named in ((["TRAIN.OPT", "sgd"], "TRAIN.OPT"),
                         (["TRAIN.EMA_DECAY", "0"], "TRAIN.EMA_DECAY")):
        assert named in refusal(script(*resume, *words, check=False))
    shutil.copytree(run, tmp_path / "kept")
    script(*resume, "TRAIN.LR", "0.1", "TRAIN.WEIGHT_DECAY", "0.3", "TRAIN.BATCH_SIZE", "2",
           "TRAIN.AMP", "bf16")
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    assert [record["lr"] for record in log] == pytest.approx([0.004, 0.05])  # half a cosine
    ended = weights(run / "last.pth")
    assert ended["amp"] == "bf16"
    assert {group["weight_decay"] for group in ended["optimizer"]["param_groups"]} == {0, 0.3}
    assert ended["scheduler"]["last_epoch"] == 8  # two epochs of eight faces, two a step


def test_batches_cannot_change_in_the_middle_of_an_epoch(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    last = tmp_path / "run" / "last.pth"
    words = ["train.py", "--data_dir", folder, "--resume", last, "--cache_dir",
             tmp_path / "cache", "TRAIN.EPOCHS", "2", "TRAIN.BATCH_SIZE", "3"]
    torch.save(weights(last) | {"progress": {"steps": 1}}, last)
    done = script(*words, check=False)
    assert done.returncode == 2
    assert "TRAIN.BATCH_SIZE cannot change in the middle of an epoch" in done.stderr
    torch.save(weights(last) | {"progress": None}, last)
    script(*words)


def test_two_processes_train_and_validate_as_one(folder, tmp_path):
    # Without batch norm and dropout each process's share of a batch gives its share of the
    # gradient; a step of SGD shows it in the weights.
    words = [*TINY, "MODEL.ARCH", "squeezenet1_1", "MODEL.IMG_SIZE", "64", "TRAIN.OPT", "sgd",
             "TRAIN.LR", "0.001", "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "8", "TRAIN.MOMENTUM",
             "0.0"]
    train(folder, tmp_path / "one", *words)
    train_in_two_processes(folder, tmp_path / "two", *words)
    one, two = (json.loads((tmp_path / run / "log.jsonl").read_text()) for run in ("one", "two"))
    torch.testing.assert_close(weights(tmp_path / "one" / "last.pth")["model"],
                               weights(tmp_path / "two" / "last.pth")["model"],
                               rtol=1e-5, atol=1e-6)
    for part in ("train", "valid"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            assert value == pytest.approx(two[part][name], rel=1e-4), (part, name)


def test_two_processes_go_on_exactly_and_keep_the_model_they_validate(folder, tmp_path):
    # Each draws its own dropout, and counts its own batch norm statistics while it trains.
    words = [*STEADY, "TRAIN.SCHEDULE", "step", "TRAIN.EPOCHS"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_in_two_processes(folder, whole, *words, "2")
    train_in_two_processes(folder, parts, *words, "1")
    train_in_two_processes(folder, parts, "--resume", str(parts / "last.pth"), "TRAIN.EPOCHS", "2")
    torch.testing.assert_close(weights(whole / "last.pth")["model"],
                               weights(parts / "last.pth")["model"], rtol=0, atol=0)
    validated = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])["valid"]["mae"]
    tested = script("test.py", "--data_dir", folder, "--split", "valid", "--cache_dir",
                    tmp_path / "cache", "--resume", whole / "last.pth").stdout
    assert float(tested.rsplit(" ", 1)[1]) == pytest.approx(validated, abs=0.001)


def train_in_two_processes(folder, run, *words):
    """Returns what was printed."""
    process = start_training(folder, run, *words, launcher=(
        "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def test_two_processes_count_each_validation_face_once_and_exactly(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, [5, 15, 25, 35, 45, 55, 65])  # an odd number of faces to share
    # So small a step leaves the weights as they are; one face a batch, so that a face's
    # prediction cannot depend on which faces come with it.
    words = [*TINY, "MODEL.ARCH", "squeezenet1_1", "MODEL.IMG_SIZE", "64", "TRAIN.OPT", "sgd",
             "TRAIN.LR", "1e-30", "TRAIN.EPOCHS", "1", "TEST.BATCH_SIZE", "1"]
    train(folder, tmp_path / "one", *words)
    train_in_two_processes(folder, tmp_path / "two", *words)
    one, two = (json.loads((tmp_path / run / "log.jsonl").read_text()) for run in ("one", "two"))
    assert one["valid"] == two["valid"]


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
    valid = json.loads((tmp_path / "run" / "log.jsonl").read_text())["valid"]
    assert {"mae", "ca5", "interval_accuracy", "interval_distance"} <= valid.keys()
    tested = script("test.py", "--data_dir", other, "--resume", tmp_path / "run" / "best.pth",
                    "--split", "valid", "--cache_dir", tmp_path / "cache")
    assert "in the right interval" in tested.stdout


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
        log = [json.loads(line) for line in (tmp_path / run / "log.jsonl").open()]
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


def test_megaage_keeps_an_epoch_for_any_improved_ca(tmp_path):
    write_dataset(tmp_path / "data", AGES, name="megaage_asian")
    train(tmp_path / "data", tmp_path / "run", *TINY, "TRAIN.EPOCHS", "4")
    stored = weights(tmp_path / "run" / "last.pth")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("ca3", "ca5", "ca7"):
        assert stored["best_ca"][name] == max(record["valid"][name] for record in log)
    kept = {int(path.name[5:8]) for path in (tmp_path / "run").glob("epoch*.pth")}
    best = {"mae": np.inf} | dict.fromkeys(("ca3", "ca5", "ca7"), 1.0)  # CA counts the other way
    better = set()
    for record in log:
        scores = {name: value if name == "mae" else -value
                  for name, value in record["valid"].items() if name in best}
        if any(scores[name] < best[name] for name in best):
            better.add(record["epoch"])
        best = {name: min(best[name], scores[name]) for name in best}
    assert kept == better


def test_an_epoch_that_is_better_in_one_ca_only_is_an_improvement():
    run = SimpleNamespace(
        metric="mae", metrics={"mae": 5.0, "ca3": 41.0, "ca5": 50.0, "ca7": 60.0}, epochs_done=2,
        best={"metric": "val_mae", "value": 4.0, "epoch": 1},
        best_ca={"ca3": 40.0, "ca5": 60.0, "ca7": 70.0},
        job=SimpleNamespace(sources=[("", "megaage", "")]))
    assert run.Run._note_best(run) == (False, True)
    assert run.best_ca["ca3"] == 41
    assert run.Run._note_best(run) == (False, False)


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
    log = json.loads((run / "log.jsonl").read_text())
    valid = script("test.py", *words, "--split", "valid", "--output", tmp_path / "valid.csv")
    assert float(valid.stdout.rsplit(" ", 1)[1]) == pytest.approx(log["valid"]["mae"], abs=1e-3)
    script("test.py", *words, "--output", tmp_path / "test.csv")
    assert pd.read_csv(tmp_path / "valid.csv")["photo"].tolist() == ["drawn_4.png", "drawn_5.png"]
    assert pd.read_csv(tmp_path / "test.csv")["photo"].tolist() == ["drawn_6.png"]
    with pytest.warns(UserWarning, match="fitted to 2 faces only"):
        assert "fitted on 2 faces" in script("test.py", *words, "--calibrate").stdout
    done = script("test.py", *words, "--calibrate", "--split", "test", check=False)
    assert "leave --split out" in refusal(done)


def test_a_clipped_step_has_the_length_asked_for(folder, trained, tmp_path):
    train(folder, tmp_path / "run", *TINY, "MODEL.PRETRAINED", trained, "TRAIN.OPT", "sgd",
          "TRAIN.LR", "0.5", "TRAIN.MOMENTUM", "0.0", "TRAIN.WEIGHT_DECAY", "0.0",
          "TRAIN.CLIP_NORM", "0.01", "TRAIN.BATCH_SIZE", "8", "TRAIN.EPOCHS", "1")
    before, after = (weights(path)["model"] for path in (trained, tmp_path / "run" / "last.pth"))
    steps = [after[name] - values for name, values in before.items()
             if values.is_floating_point() and "running" not in name]
    assert torch.cat([step.flatten() for step in steps]).norm() == pytest.approx(0.005, rel=1e-3)


def test_a_broken_photo_met_in_a_worker_ends_in_one_line(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    whole = (data / "drawn_3.png").read_bytes()
    (data / "drawn_3.png").write_bytes(whole[:len(whole) // 2])
    done = train(data, tmp_path / "run", *TINY, "DATA.CACHE", "False", "TRAIN.WORKERS", "1",
                 "TRAIN.EPOCHS", "1", check=False)
    assert "drawn_3.png: image file is truncated" in refusal(done)


def test_an_earlier_run_is_set_aside(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    before = (tmp_path / "run" / "best.pth").read_bytes()
    done = train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1", "TRAIN.SEED", "1")
    assert "earlier-1" in done.stdout
    assert (tmp_path / "run" / "earlier-1" / "best.pth").read_bytes() == before


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train(folder, run, "--tensorboard", run.parent / "tf_log", *TINY, "TRAIN.EPOCHS", "1")
    return run / "best.pth"


def test_tta_is_the_mean_of_the_image_and_its_mirror(folder, trained, tmp_path):
    from checkpoint import load_checkpoint
    from dataset import FaceDataset
    from defaults import load_cfg
    from lists import Source, read_faces
    from model import restore_model
    words = ["--data_dir", folder, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--output", tmp_path / "tta.csv", "TEST.TTA", "True")
    table = pd.read_csv(tmp_path / "tta.csv")
    model, _ = restore_model(load_checkpoint(trained))
    cfg = load_cfg(None, TINY)
    faces = read_faces(Source(folder, "drawn", folder), "test", cfg)
    data = FaceDataset(faces, cfg, False, tmp_path / "cache")
    pixels = data.__getitems__([(0, i) for i in range(8)])["pixels"]
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


def test_only_a_model_given_by_its_file_is_calibrated(folder):
    done = script("test.py", "--data_dir", folder, "--resume", "default", "--calibrate",
                  check=False)
    assert "name its file with --resume" in refusal(done)


@pytest.mark.parametrize("name", ["train.py", "test.py"])
def test_help_lists_flags_and_architectures(name):
    text = script(name, "--help").stdout
    assert "--data_dir" in text
    assert "KEY VALUE" in text
    if name == "train.py":
        from model import list_archs
        assert all(arch in text for arch in list_archs())


def refusal(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


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


@pytest.mark.parametrize("flag", ["--checkpoint", "--tensorboard"])
def test_a_folder_that_is_a_file_is_named_before_anything_is_read(folder, tmp_path, flag):
    (tmp_path / "file").touch()
    done = train(folder, tmp_path / "run", *TINY, flag, tmp_path / "file" / "deeper", check=False)
    assert f"{flag} '{tmp_path / 'file' / 'deeper'}': '{tmp_path / 'file'}' is no folder" in \
        refusal(done)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    done = train(folder, tmp_path / "run", *TINY, flag, tmp_path / "link", check=False)
    assert "is no folder" in refusal(done)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_gpu_is_named(folder, tmp_path):
    done = train(folder, tmp_path / "run", *TINY, "--device", "cuda", check=False)
    assert "--device cpu" in refusal(done)


def test_test_refuses_what_does_not_fit(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--resume", trained, "--cache_dir", tmp_path / "cache"]
    assert "TEST" in refusal(script("test.py", *words, "MODEL.IMG_SIZE", "64", check=False))
    done = script("test.py", *words, "--output", tmp_path, check=False)
    assert "is a folder; name a CSV file in it" in refusal(done)
    only = tmp_path / "only"
    write_dataset(only, [20], splits=("train",))
    done = script("test.py", "--data_dir", only, "--resume", trained, check=False)
    assert "it has train" in refusal(done)
    other = torch.load(trained, weights_only=True)
    other["cfg"] = other["cfg"].replace("timm/test_resnet", "timm/resnet34")
    torch.save(other, tmp_path / "other.pth")
    done = script("test.py", "--data_dir", folder, "--resume", tmp_path / "other.pth", check=False)
    assert "resnet34" in refusal(done)


def test_bad_images_end_the_run_at_the_start(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    content = (broken / "drawn_2.png").read_bytes()
    (broken / "drawn_2.png").write_bytes(content[:200])
    assert "drawn_2.png" in refusal(train(broken, tmp_path / "run", *TINY, check=False))
    done = train(broken, tmp_path / "run", *TINY, "DATA.CACHE", "False", check=False)
    assert "drawn_2.png" in refusal(done)


def test_rotations_train_and_test_in_turn(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, AGES, splits=("train",))
    for fold in range(2):
        rows = [{"photo": f"drawn_{i}.png", "split": ("train", "train", "valid", "test")[
            (i + fold) % 4]} for i in range(len(AGES))]
        write_list(folder / f"drawn_split_fold{fold}.csv", rows)
    words = ["--protocol", "fold*", *TINY, "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "4"]
    lines = train(folder, tmp_path / "run", *words).stdout.splitlines()
    maes = [float(line.split()[-1]) for line in lines if re.match(r"fold\d: test mae:", line)]
    assert len(maes) == 2
    told = re.fullmatch(r"test mae: (\S+) \(sd (\S+) over 2 protocols\)", lines[-1])
    assert float(told[1]) == pytest.approx(np.mean(maes), abs=0.0015)
    assert float(told[2]) == pytest.approx(np.std(maes, ddof=1), abs=0.0015)
    again = train(folder, tmp_path / "run", *words).stdout  # both done: only tested again
    assert again.splitlines()[-1] == lines[-1]
    both = train_in_two_processes(folder, tmp_path / "both", *words).splitlines()
    assert [line.split(":")[0] for line in both if "test mae" in line] == [
        "fold0", "fold1", "test mae"]
    tested = script("test.py", "--data_dir", folder, "--protocol", "fold1", "--resume",
                    tmp_path / "run" / "fold1" / "best.pth", "--cache_dir", tmp_path / "cache")
    assert tested.stdout.splitlines()[-1] == f"test mae: {maes[1]:.3f}"
    for changes, named in ((["TRAIN.BATCH_SIZE", "3"], "TRAIN.BATCH_SIZE 4, not 3"),
                           (["LOSS.NAME", "ce"], "LOSS.NAME kl_l1, not ce"),
                           (["MODEL.ARCH", "timm/test_vit"], "timm/test_resnet, not")):
        done = train(folder, tmp_path / "run", *words, *changes, check=False)
        assert named in refusal(done)
    last = tmp_path / "run" / "fold0" / "last.pth"
    torch.save(weights(last) | {"datasets": ["other"]}, last)
    assert "--dataset ['other'], not ['drawn']" in refusal(
        train(folder, tmp_path / "run", *words, check=False))
    untested = [row | {"split": "valid"} if row["split"] == "test" else row for row in rows]
    write_list(folder / "drawn_split_fold1.csv", untested)
    done = train(folder, tmp_path / "new", *words, check=False)
    assert "drawn_split_fold1.csv' has no test split" in refusal(done)
    assert not (tmp_path / "new").exists()  # before fold0 is trained
    resumed = ["--resume", tmp_path / "run" / "fold1" / "last.pth"]
    for protocol in ([], ["--protocol", "fold0"]):
        done = train(folder, tmp_path / "other", *resumed, *protocol, check=False)
        assert "of a run with --protocol fold1" in refusal(done)


def test_rotations_of_intervals_end_in_their_scores(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, AGES, splits=("train",), columns={
        "age_min": [age - 4 for age in AGES], "age_max": [age + 4 for age in AGES]})
    for fold in range(2):
        rows = [{"photo": f"drawn_{i}.png", "split": ("train", "train", "valid", "test")[
            (i + fold) % 4]} for i in range(len(AGES))]
        write_list(folder / f"drawn_split_fold{fold}.csv", rows)
    told = train(folder, tmp_path / "run", "--protocol", "fold*", *TINY, "TRAIN.EPOCHS", "1")
    lines = told.stdout.splitlines()
    assert re.fullmatch(r"distance to the interval, years: \S+ \(sd \S+ over 2 protocols\)",
                        lines[-1])
    assert "mae" not in lines[-1] and lines[-2].startswith("in the right interval, %: ")


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


def test_an_epoch_is_not_continued_over_other_faces(folder, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(folder, other)
    train(other, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    last = tmp_path / "run" / "last.pth"
    half = {"steps": 1, "seconds": 1.0, "lr": 0.001, "sums": {}, "index": torch.arange(4),
            "pred_ages": torch.zeros(4)}
    torch.save(weights(last) | {"progress": half}, last)
    table = pd.read_csv(other / "drawn_train_align.csv")
    table[::-1].to_csv(other / "drawn_train_align.csv", index=False)
    words = ["--resume", last, "TRAIN.EPOCHS", "2"]
    assert "training list has changed" in refusal(train(other, tmp_path / "run", *words,
                                                        check=False))
    table.to_csv(other / "drawn_train_align.csv", index=False)
    torch.save(weights(last) | {"best": {}}, last)  # as in the first epoch
    assert "best model so far" not in train(other, tmp_path / "run", *words).stdout


def test_best_stays_with_its_run(folder, tmp_path):
    # Nothing is learnt, so that later epochs need not be better.
    run = tmp_path / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "3", "TRAIN.LR", "1e-30", "AUG.STRENGTH", "0")
    best = weights(run / "last.pth")["best"]
    moved = train(folder, tmp_path / "new", "--resume", run / "last.pth", "TRAIN.EPOCHS", "3")
    assert weights(tmp_path / "new" / "best.pth")["epochs_done"] == best["epoch"]
    assert f"in epoch {best['epoch']:02d}" in moved.stdout
    torch.save(weights(run / "best.pth") | {"epochs_done": 99}, run / "best.pth")  # gone on since
    first = next(run.glob("epoch001_*.pth"))
    train(folder, run, "--resume", first, "TRAIN.EPOCHS", "1")
    assert weights(run / "best.pth")["epochs_done"] == 1


def test_recipes_train_in_turn_each_from_the_best_model_before(folder, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("MODEL:\n  IMG_SIZE: 32\nTRAIN:\n  EPOCHS: 1\n  WEIGHT_DECAY: 0.5\n")
    second.write_text("MODEL:\n  IMG_SIZE: 64\nTRAIN:\n  EPOCHS: 2\n  LR: 1e-9\n")
    overrides = [word for pair in zip(TINY[::2], TINY[1::2], strict=True)
                 if pair[0] != "MODEL.IMG_SIZE" for word in pair]
    words = ["--cfg", first, second, *overrides]
    told = train(folder, tmp_path / "run", *words).stdout
    assert "best val_mae" in told.splitlines()[-2]
    start = weights(tmp_path / "run" / "first" / "best.pth")
    end = weights(tmp_path / "run" / "second" / "best.pth")
    cfg = parse_cfg(end["cfg"])
    assert (cfg.MODEL.IMG_SIZE, cfg.TRAIN.WEIGHT_DECAY) == (64, 0.5)
    assert Path(cfg.MODEL.PRETRAINED) == tmp_path / "run" / "first" / "best.pth"
    for name, tensor in start["model"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(end["model"][name], tensor, rtol=0, atol=1e-5)
    log = (tmp_path / "run" / "second" / "log.jsonl").read_text()
    again = train(folder, tmp_path / "run", *words).stdout  # both done
    assert "resumed after 1 epochs" in again and "resumed after 2 epochs" in again
    assert (tmp_path / "run" / "second" / "log.jsonl").read_text() == log
    (tmp_path / "other").mkdir()
    shutil.copy(first, tmp_path / "other" / "first.yaml")
    done = train(folder, tmp_path / "run", "--cfg", first, tmp_path / "other" / "first.yaml",
                 check=False)
    assert "same name" in refusal(done)


def test_ctrl_c_at_the_end_of_a_recipe_starts_no_other(folder, tmp_path):
    recipes = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for recipe in recipes:
        recipe.write_text("TRAIN:\n  EPOCHS: 1\n")
    run, words = tmp_path / "run", ["--cfg", *map(str, recipes), "--tensorboard",
                                    str(tmp_path / "tf_log"), *TINY]
    process = start_training(folder, run, *words)  # drawing follows the line in the log
    printed = interrupt_after(process, run / "first", epochs=1)
    assert process.returncode == 130
    assert "continue with: the same command" in printed
    assert not (run / "second").exists()
    train(folder, run, *words)
    assert (run / "second" / "best.pth").is_file()


def test_calibration_is_stored_and_applied(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    model = tmp_path / "run" / "best.pth"
    words = ["--data_dir", folder, "--resume", model, "--cache_dir", tmp_path / "cache"]
    script("test.py", *words, "--output", tmp_path / "before.csv")
    told = script("test.py", *words, "--calibrate").stdout
    temperature = weights(model)["temperature"]
    assert f"temperature {temperature:.3f}" in told
    assert "covers" in told
    script("test.py", *words, "--output", tmp_path / "after.csv")
    columns = [f"p{age}" for age in range(101)]
    before, after = (pd.read_csv(tmp_path / f"{name}.csv")[columns].to_numpy()
                     for name in ("before", "after"))
    scaled = before ** (1 / temperature)
    np.testing.assert_allclose(after, scaled / scaled.sum(axis=1, keepdims=True), atol=1e-4)
    assert not np.allclose(before, after, atol=1e-3)


def test_reports_of_one_model_of_several_and_of_a_table(folder, trained, tmp_path):
    words = ["--data_dir", folder, "--cache_dir", tmp_path / "cache", "--report"]
    script("test.py", *words, tmp_path / "one", "--resume", trained)
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert {"value", "low", "high"} <= metrics["mae"].keys()
    assert (tmp_path / "one" / "report.html").stat().st_size > 10_000
    other = tmp_path / "other.pth"
    shutil.copy(trained, other)
    script("test.py", *words, tmp_path / "two", "--resume", trained, other)
    assert len(json.loads((tmp_path / "two" / "metrics.json").read_text())["comparisons"]) == 1
    done = script("test.py", "--predictions", tmp_path / "one" / "predictions.csv", "--report",
                  tmp_path / "table")
    assert done.stdout.splitlines()[-1] == f"test mae: {metrics['mae']['value']:.3f}"


def test_a_report_does_not_replace_the_table_it_is_made_of(tmp_path):
    text = "photo,age,pred_age,note\na.jpg,30,31.123456789,007\n"
    (tmp_path / "predictions.csv").write_text(text)
    words = ["--predictions", tmp_path / "predictions.csv", "--report"]
    done = script("test.py", *words, tmp_path, check=False)
    assert "would be overwritten; choose another --report" in refusal(done)
    assert (tmp_path / "predictions.csv").read_text() == text
    script("test.py", *words, tmp_path / "elsewhere")


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
