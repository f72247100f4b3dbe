"""Runs that are interrupted, killed or diverge, and continue."""

import itertools
import os
import shutil
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from faces import TINY
from scripts import (
    STEADY,
    interrupt_after,
    read_log,
    refusal,
    script,
    start_training,
    train,
    weights,
)

import engine
from checkpoint import load_checkpoint, save_checkpoint
from defaults import load_cfg
from training import loop
from training.folder import RunFolder
from training.run import Run


def killed(*_):
    raise SystemExit(137)


# Asked after each of an epoch's two steps and after the epoch.
@pytest.mark.parametrize(("askings", "told"), [
    (3, "resumed after 1 epoch and 0 steps"), (4, "resumed after 1 epoch and 1 step")])
def test_two_epochs_equal_one_stopped_and_resumed_to_the_bit(folder, tmp_path, monkeypatch,
                                                             askings, told):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *STEADY, "TRAIN.EPOCHS", "2")

    @contextmanager
    def stop_after():
        asked = itertools.count(1)
        yield lambda: next(asked) >= askings

    with monkeypatch.context() as patched:
        patched.setattr(loop, "stop_on_interrupt", stop_after)
        assert train(folder, parts, *STEADY, "TRAIN.EPOCHS", "2", check=False).returncode == 130
    assert told in train(folder, parts, "--resume", parts / "last.pth").stdout
    mine, theirs = weights(whole / "last.pth"), weights(parts / "last.pth")
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert mine["best"] == theirs["best"]
    told = train(folder, parts, "--resume", parts / "last.pth").stdout  # at its end
    assert f"nothing to train: {parts / 'last.pth'} is at the end of TRAIN.EPOCHS 2; raise it" \
        in told
    torch.testing.assert_close(weights(parts / "last.pth")["model"], mine["model"], rtol=0, atol=0)


def test_a_student_of_a_model_goes_on_to_the_bit(folder, trained, tmp_path, monkeypatch):
    words = [*STEADY, "TRAIN.EPOCHS", "2", "LOSS.TEACHER", trained, "LOSS.NAME", "or_cnn"]
    train(folder, tmp_path / "whole", *words)

    @contextmanager
    def stop_within_the_second_epoch():
        asked = itertools.count(1)
        yield lambda: next(asked) >= 4

    with monkeypatch.context() as patched:
        patched.setattr(loop, "stop_on_interrupt", stop_within_the_second_epoch)
        train(folder, tmp_path / "parts", *words, check=False)
    train(folder, tmp_path / "parts", "--resume", tmp_path / "parts" / "last.pth")
    mine, theirs = (weights(tmp_path / run / "last.pth") for run in ("whole", "parts"))
    torch.testing.assert_close(mine["ema"], theirs["ema"], rtol=0, atol=0)


def test_a_run_goes_on_with_teachers_that_were_moved_and_with_no_others(folder, trained, tmp_path):
    teachers, moved, run = tmp_path / "teachers", tmp_path / "moved", tmp_path / "run"
    teachers.mkdir()
    shutil.copy(trained, teachers / "a.pth")
    train(folder, tmp_path / "whole", *STEADY, "TRAIN.EPOCHS", "2", "LOSS.TEACHER", teachers)
    [first] = (tmp_path / "whole").glob("epoch001_*.pth")
    run.mkdir()
    shutil.copy(first, run / "last.pth")
    teachers.rename(moved)

    def refused(*words):
        return refusal(train(folder, run, "--resume", run / "last.pth", *words, check=False))

    assert f"LOSS.TEACHER '{teachers}': no such file or folder; give the path" in refused()
    other = tmp_path / "other.pth"
    save_checkpoint(other, load_checkpoint(trained) | {"temperature": 2.0})
    for words in (["LOSS.TEACHER", other], ["LOSS.TEACHER", ""]):
        assert f"LOSS.TEACHER '{words[1]}' names other files, or in another order, than" in \
            refused(*words)
    shutil.copy(other, shutil.copytree(moved, teachers) / "a.pth")  # in the place of the old one
    assert "names other files" in refused()
    train(folder, run, "--resume", run / "last.pth", "LOSS.TEACHER", moved)
    mine, theirs = weights(tmp_path / "whole" / "last.pth"), weights(run / "last.pth")
    torch.testing.assert_close(mine["ema"], theirs["ema"], rtol=0, atol=0)
    train(folder, run, "--resume", run / "last.pth", "TRAIN.EPOCHS", "3")  # the new path is kept

    early = weights(first)
    del early["teachers"]  # as checkpoints were written before
    torch.save(early, run / "last.pth")
    assert f"does not say which files its LOSS.TEACHER '{teachers}' named" in refused(
        "LOSS.TEACHER", moved)
    train(folder, run, "--resume", run / "last.pth")


def test_a_run_that_is_killed_while_it_validates_loses_no_epoch(folder, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *STEADY, "TRAIN.EPOCHS", "2")

    with monkeypatch.context() as patched:
        patched.setattr("training.run.predict", killed)
        assert train(folder, parts, *STEADY, "TRAIN.EPOCHS", "2", check=False).returncode == 137
    done = train(folder, parts, "--resume", parts / "last.pth")
    assert "resumed after 0 epochs and 2 steps" in done.stdout
    mine, theirs = weights(whole / "last.pth"), weights(parts / "last.pth")
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert mine["best"] == theirs["best"]


def test_ctrl_c_in_the_middle_of_an_epoch_loses_nothing(folder, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*STEADY, "TRAIN.EPOCHS", "20", "TRAIN.BATCH_SIZE", "2"]
    train(folder, whole, *words)
    process = start_training(folder, broken, "--device", "cpu", *words)
    printed = interrupt_after(process, broken, epochs=3)
    assert process.returncode == 130
    assert f"--resume {broken / 'last.pth'}" in printed
    assert "--device cpu" in printed
    assert weights(broken / "last.pth")["epochs_done"] < 20
    train(folder, broken, "--resume", broken / "last.pth")
    torch.testing.assert_close(weights(whole / "last.pth")["model"],
                               weights(broken / "last.pth")["model"], rtol=0, atol=0)


def test_a_run_saved_within_its_epochs_equals_an_undisturbed_one(folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *STEADY, "TRAIN.EPOCHS", "2")
    saved = []

    def note(files, checkpoint, *words, save=RunFolder.save):
        save(files, checkpoint, *words)
        saved.append((checkpoint["epochs_done"], checkpoint["progress"] or {}))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "save", note)
        train(folder, parts, *STEADY, "TRAIN.EPOCHS", "2", "TRAIN.SAVE_MINUTES", "1e-9")
    # Each of the two epochs: after its first step, before and after its validation.
    assert [(epochs, progress.get("steps")) for epochs, progress in saved] == [
        (0, 1), (0, 2), (1, None), (1, 1), (1, 2), (2, None)]
    mine, theirs = weights(whole / "last.pth"), weights(parts / "last.pth")
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)


def test_a_closed_terminal_saves_and_nohup_goes_on(folder, tmp_path):
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        process = start_training(folder, run, *TINY, "TRAIN.EPOCHS", "1000")
        interrupt_after(process, run, 1, lambda process: process.send_signal(signal.SIGHUP))
        assert process.returncode == 130
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with loop.stop_on_interrupt() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_termination_of_all_processes_loses_nothing(folder, tmp_path):
    # As a job scheduler or service manager stops a job: the loader's workers are told as well.
    run = tmp_path / "run"
    process = start_training(folder, run, *TINY, "TRAIN.EPOCHS", "1000", "TRAIN.WORKERS", "2",
                             start_new_session=True)
    printed = interrupt_after(process, run, 1, lambda process: os.killpg(process.pid,
                                                                         signal.SIGTERM))
    assert process.returncode == 130
    assert f"--resume {run / 'last.pth'}" in printed


def broken_step(trainer, batch, step=engine.Trainer.step):
    parts = step(trainer, batch)
    with torch.no_grad():
        trainer.model.head.bias[0] = torch.nan
    return parts


@pytest.mark.parametrize("batch_size", ["4", "8"])  # of eight faces: two steps an epoch, and one
def test_broken_weights_replace_no_checkpoint(folder, tmp_path, monkeypatch, batch_size):
    run = tmp_path / "run"
    words = ["TRAIN.BATCH_SIZE", batch_size, "TRAIN.EPOCHS"]
    train(folder, run, *TINY, "TRAIN.OPT", "sgd", "TRAIN.LR", "0.001", *words, "1")
    good = (run / "best.pth").read_bytes()
    for scale in ("1", "1e6"):  # weights that are huge, and that are no numbers
        again = ["--resume", run / "last.pth", "TRAIN.LR", "1e30", "TRAIN.BACKBONE_LR_SCALE", scale,
                 *words, "3"]
        assert "diverged" in refusal(train(folder, run, *again, check=False))
        assert (run / "last.pth").read_bytes() == good
    with monkeypatch.context() as patched:
        patched.setattr(loop, "stop_on_interrupt", lambda: nullcontext(lambda: True))
        patched.setattr(engine.Trainer, "step", broken_step)
        done = train(folder, run, *again, check=False)
    assert done.returncode == (130 if batch_size == "4" else 2)
    assert "last.pth is left as it was" in done.stdout
    assert (run / "last.pth").read_bytes() == good


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
    rates = [record["lr"] for record in read_log(run)]
    assert rates == pytest.approx([0.004, 0.05])  # half a cosine
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
    assert "so the next epoch becomes the best" not in train(other, tmp_path / "run", *words).stdout


def test_going_back_to_an_earlier_epoch_keeps_where_the_run_stood(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "3")
    kept = {name: (run / name).read_bytes() for name in ("last.pth", "best.pth", "log.jsonl")}
    first = next(run.glob("epoch001_*.pth"))
    done = train(folder, run, "--resume", first, "TRAIN.EPOCHS", "2")
    assert f"last.pth was further than {first}, with 3 epochs done; it is kept in " in done.stdout
    assert {name: (run / "earlier-1" / name).read_bytes() for name in kept} == kept
    epochs = sorted(path.name[:8] for path in (run / "earlier-1").glob("epoch*.pth"))
    assert epochs == ["epoch002", "epoch003"] and len(list(run.glob("epoch001_*"))) == 1
    assert len(list(run.glob("epoch002_*"))) <= 1 and not list(run.glob("epoch003_*"))
    assert load_checkpoint(run / "last.pth")["epochs_done"] == 2
    train(folder, run, "--resume", run / "last.pth", "TRAIN.EPOCHS", "3")  # not further back
    assert not (run / "earlier-2").exists()


def test_other_validation_faces_begin_a_new_contest_for_the_best(folder, tmp_path):
    run, left_out = tmp_path / "run", tmp_path / "out.csv"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "1")
    before = weights(run / "last.pth")
    before["best"]["value"], before["best_ca"] = 0.1, {"ca5": 100.0}
    torch.save(before, run / "last.pth")
    again = ["--resume", run / "last.pth", "TRAIN.EPOCHS"]
    told = train(folder, run, *again, "2").stdout
    assert "validation faces" not in told and "best val_mae 0.10 in epoch 01" in told
    left_out.write_text("photo\ndrawn_3.png\n")
    told = train(folder, run, *again, "3", "DATA.EXCLUDE", left_out).stdout
    assert "the validation faces are not those of the epochs before, so the next epoch" in told
    assert weights(run / "best.pth")["best"]["epoch"] == 3
    assert weights(run / "last.pth")["best_ca"]["ca5"] < 100


def test_the_log_forgets_epochs_that_were_gone_back_before(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "3")
    first = next(run.glob("epoch001_*.pth"))
    with (run / "log.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tra')  # killed in a write
    train(folder, run, "--resume", first, "TRAIN.EPOCHS", "2")
    assert [record["epoch"] for record in read_log(run)] == [1, 2]


def test_last_is_written_when_all_other_files_of_its_epoch_are(tmp_path, monkeypatch):
    order = []

    def noted(path, target, replace=Path.replace):
        order.append(Path(target).name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    RunFolder(tmp_path).save({"cfg": "", "model": {}}, "epoch001.pth", is_best=True)
    assert order == ["epoch001.pth", "best.pth", "last.pth"]


def test_a_resumed_run_remembers_its_best_ca(folder, tmp_path):
    run = tmp_path / "run"
    train(folder, run, *TINY, "TRAIN.EPOCHS", "1")
    last = weights(run / "last.pth")
    torch.save(last | {"best_ca": {"ca3": 100.0, "ca5": 100.0, "ca7": 100.0},
                       "best": last["best"] | {"value": 0.0}}, run / "last.pth")
    before = set(run.glob("epoch*.pth"))
    train(folder, run, "--resume", run / "last.pth", "TRAIN.EPOCHS", "2")
    assert weights(run / "last.pth")["best_ca"] == {"ca3": 100, "ca5": 100, "ca7": 100}
    assert set(run.glob("epoch*.pth")) == before


def test_a_list_with_another_age_is_another_list(folder, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    train(data, run, *TINY, "TRAIN.EPOCHS", "1")
    last = weights(run / "last.pth")
    half = {"steps": 1, "seconds": 1.0, "lr": 0.001, "sums": {}, "index": torch.arange(4),
            "pred_ages": torch.zeros(4)}
    torch.save(last | {"progress": half, "best": {}}, run / "half.pth")
    for split in ("train", "valid"):
        path = data / f"drawn_{split}_align.csv"
        pd.read_csv(path).replace({"age": {25: 26}}).to_csv(path, index=False)
        if split == "train":
            assert "training list has changed" in refusal(train(
                data, run, "--resume", run / "half.pth", "TRAIN.EPOCHS", "2", check=False))
    assert "the validation faces are not those of the epochs before" in train(
        data, run, "--resume", run / "last.pth", "TRAIN.EPOCHS", "2").stdout


def test_a_save_is_due_after_so_many_minutes(folder, tmp_path):
    run = SimpleNamespace(cfg=load_cfg(None, ["TRAIN.SAVE_MINUTES", "2"]))
    for seconds, is_due in ((0, False), (100, False), (130, True)):
        run.saved_at = time.monotonic() - seconds
        assert Run.is_save_due(run) == is_due
