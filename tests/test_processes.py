"""Training under torchrun: two processes, on one machine or on two, do the same as one."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from faces import TINY, write_dataset, write_list
from scripts import (
    ROOT,
    STEADY,
    TWO_PROCESSES,
    draw_ages,
    interrupt_after,
    read_log,
    refusal,
    script,
    start_on_two_machines,
    start_training,
    train,
    train_in_two_processes,
    train_on_two_machines,
    weights,
)

from checkpoint import load_checkpoint, save_checkpoint
from utils.distributed import choose_device


@pytest.mark.parametrize("train_together", [train_in_two_processes, train_on_two_machines])
def test_two_processes_train_validate_and_test_as_one(tmp_path, monkeypatch, train_together):
    """The first of the two protocols was killed while one process validated it."""
    folder = tmp_path / "data"
    ages = [5, 14, 23, 32, 41, 50, 59, 68, 77, 86]
    write_dataset(folder, ages, splits=("train",))
    splits = ["train"] * 4 + ["valid"] * 3 + ["test"] * 3  # odd numbers, to share
    for fold in range(2):
        write_list(folder / f"drawn_split_fold{fold}.csv", [
            {"photo": f"drawn_{i}.png", "split": splits[(i + 5 * fold) % 10]} for i in range(10)])
    # Without batch norm and dropout each process's share of a batch gives its share of the
    # gradient, and a step of SGD shows it in the weights. In validation one face a batch, so that
    # its prediction does not depend on the faces beside it.
    words = ["--protocol", "fold*", *TINY, "MODEL.ARCH", "squeezenet1_1", "MODEL.IMG_SIZE", "64",
             "TRAIN.OPT", "sgd", "TRAIN.LR", "0.001", "TRAIN.MOMENTUM", "0.0", "TRAIN.EPOCHS", "1",
             "TRAIN.BATCH_SIZE", "2", "TEST.BATCH_SIZE", "1"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train(folder, one, *words).stdout
    with monkeypatch.context() as patched:
        patched.setattr("training.run.predict", lambda *_: sys.exit(137))
        assert train(folder, two, *words, check=False).returncode == 137
    both = train_together(folder, two, *words)
    assert "resumed after 0 epochs and 2 steps" in both
    for fold in ("fold0", "fold1"):
        torch.testing.assert_close(weights(one / fold / "last.pth")["model"],
                                   weights(two / fold / "last.pth")["model"], rtol=1e-5, atol=1e-6)
        [expected], [found] = read_log(one / fold), read_log(two / fold)
        for part in ("train", "valid"):
            assert found[part] == pytest.approx(expected[part], rel=1e-4), (fold, part)
    expected, found = ([line.rsplit(" ", 1) for line in told.splitlines()
                        if re.match(r"fold\d: test mae: ", line)] for told in (alone, both))
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert len(found) == 2
    for (_, mae), (_, same) in zip(found, expected, strict=True):
        assert float(mae) == pytest.approx(float(same), abs=0.002)


def test_two_processes_go_on_exactly_and_keep_the_model_they_validate(tmp_path):
    folder = draw_ages(tmp_path / "data")
    # Each draws its own dropout, and counts its own batch norm statistics while it trains.
    words = [*STEADY, "TRAIN.SCHEDULE", "step", "TRAIN.EPOCHS", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_in_two_processes(folder, whole, *words)
    [first] = whole.glob("epoch001_*.pth")
    train_in_two_processes(folder, parts, "--resume", str(first))
    torch.testing.assert_close(weights(whole / "last.pth")["model"],
                               weights(parts / "last.pth")["model"], rtol=0, atol=0)
    validated = read_log(whole)[-1]["valid"]["mae"]
    tested = script("test.py", "--data_dir", folder, "--split", "valid", "--cache_dir",
                    tmp_path / "cache", "--resume", whole / "last.pth").stdout
    assert float(tested.rsplit(" ", 1)[1]) == pytest.approx(validated, abs=0.001)


def test_two_processes_go_on_with_teachers_that_were_moved(folder, trained, tmp_path):
    teachers, run = tmp_path / "teachers", tmp_path / "run"
    teachers.mkdir()
    shutil.copy(trained, teachers / "a.pth")
    train_in_two_processes(folder, run, *STEADY, "TRAIN.EPOCHS", "1", "LOSS.TEACHER", str(teachers))
    other = tmp_path / "other.pth"
    save_checkpoint(other, load_checkpoint(trained) | {"temperature": 2.0})
    process = start_training(folder, run, "--resume", str(run / "last.pth"), "LOSS.TEACHER",
                             str(other), launcher=TWO_PROCESSES)
    out, err = process.communicate(timeout=300)
    assert process.returncode and err.count("error: LOSS.TEACHER '") == 2, out + err
    teachers.rename(tmp_path / "moved")
    told = train_in_two_processes(folder, run, "--resume", str(run / "last.pth"), "LOSS.TEACHER",
                                  str(tmp_path / "moved"), "TRAIN.EPOCHS", "2")
    assert "resumed after 1 epoch and" in told
    assert weights(run / "last.pth")["epochs_done"] == 2


def test_ctrl_c_on_one_of_two_machines_stops_both(tmp_path):
    folder, run = draw_ages(tmp_path / "data"), tmp_path / "run"
    first, second = start_on_two_machines(folder, run, *STEADY, "TRAIN.EPOCHS", "2000")
    interrupt_after(second, run, epochs=1)
    out, err = first.communicate(timeout=120)
    assert "continue on every machine with: torchrun --nnodes=2 --nproc_per_node=1 " \
        "--rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:29500 train.py --data_dir " in out, \
        out + err
    assert out.rstrip().endswith(f"--resume {run / 'last.pth'}")
    saved = weights(run / "last.pth")
    assert saved["epochs_done"] >= 1
    assert len(saved["random_state"]["cpu"]) == 2


def test_only_the_main_process_warns(tmp_path):
    (tmp_path / "script.py").write_text(
        "import warnings, torch\nfrom utils import distributed\n"
        "with distributed.processes(torch.device('cpu')) as device:\n"
        "    warnings.warn('of a list')\n"
        "    distributed.any_true(True, device)\n")  # the main process ends last
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         tmp_path / "script.py"], text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning: of a list") == 1


def test_both_machines_say_that_their_lists_differ(tmp_path):
    folder, run = draw_ages(tmp_path / "data"), tmp_path / "run"
    first, second = start_on_two_machines(
        folder, run, *STEADY, edit=lambda data: (data / "drawn_valid_align.csv").write_text(
            (data / "drawn_valid_align.csv").read_text().replace(",25,", ",26,")))
    for process in (first, second):
        _, err = process.communicate(timeout=120)
        assert "error: the valid list of process 1 and of process 0 differ" in err
    assert not run.exists()


def test_numbers_of_a_job_system_alone_start_no_training(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    done = train(folder, tmp_path / "run", *TINY, check=False)
    assert "not by torchrun: start the training with torchrun, or unset them" in refusal(done)


@pytest.mark.parametrize(("name", "problem"), [
    ("cuda:77", "--device cuda:77: no such device found"), ("gpu", "unknown device 'gpu'")])
def test_a_device_that_is_not_there_is_refused(name, problem):
    with pytest.raises(ValueError, match=problem):
        choose_device(name)
