"""Which files a run keeps, and when one replaces another."""

import numpy as np
import pytest
import torch
from faces import TINY
from scripts import interrupt_after, read_log, refusal, start_training, train, weights

from batches import build_eval_loader
from defaults import load_cfg
from lists import pair_folders, read_sources
from training.build import build_network, build_train_loader, build_trainer
from training.run import Job, Run


def test_an_earlier_run_is_set_aside(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    before = (tmp_path / "run" / "best.pth").read_bytes()
    done = train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1", "TRAIN.SEED", "1")
    assert "earlier-1" in done.stdout
    assert (tmp_path / "run" / "earlier-1" / "best.pth").read_bytes() == before


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


def test_an_epoch_that_improves_any_ca_is_kept(folder, tmp_path):
    train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "4")
    stored, log = weights(tmp_path / "run" / "last.pth"), read_log(tmp_path / "run")
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


def test_an_epoch_that_is_better_in_one_ca_only_is_an_improvement(folder, tmp_path):
    cfg, cpu = load_cfg(None, TINY), torch.device("cpu")
    sources = pair_folders([folder], None, None)
    loaders = {"train": build_train_loader(read_sources(sources, "train", cfg), cfg, cpu, tmp_path),
               "valid": build_eval_loader(read_sources(sources, "valid", cfg), cfg, cpu, tmp_path)}
    trainer = build_trainer(cfg, cpu, build_network(cfg, cpu), loaders["train"])
    run = Run(Job(sources, cpu, tmp_path / "run", []), cfg, trainer, loaders, epochs_done=2,
              metrics={"mae": 5.0, "ca3": 41.0, "ca5": 50.0, "ca7": 60.0},
              best={"metric": "val_mae", "value": 4.0, "epoch": 1},
              best_ca={"ca3": 40.0, "ca5": 60.0, "ca7": 70.0})
    assert run.note_best() == (False, True)
    assert run.best_ca["ca3"] == 41
    assert run.note_best() == (False, False)


def test_a_second_run_in_a_folder_ends_at_its_start(folder, tmp_path):
    run, words = tmp_path / "run", [*TINY, "TRAIN.EPOCHS", "1000"]
    first = start_training(folder, run, *words)
    second = []

    def start_second(process):
        second.append(refusal(train(folder, run, *TINY, "TRAIN.SEED", "1", check=False)))
        process.kill()

    interrupt_after(first, run, 1, start_second)
    assert f"process {first.pid} on " in second[0] and "--checkpoint" in second[0]
    assert not list(run.glob("earlier-*"))
    log = read_log(run)
    assert [record["epoch"] for record in log] == list(range(1, len(log) + 1))
    # The lock of the killed process does not block.
    train(folder, run, "--resume", run / "last.pth", "TRAIN.EPOCHS", "1")
    assert not (run / ".lock.owner").exists()


@pytest.mark.parametrize("flag", ["--checkpoint", "--tensorboard", "--cache_dir"])
def test_a_full_disk_ends_the_run_in_one_line(folder, tmp_path, small_disk, flag):
    (small_disk / "other").write_bytes(bytes(2_090_000))
    done = train(folder, tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1", flag, small_disk / "mine",
                 check=False)
    line = refusal(done)
    assert str(small_disk) in line and ("no space left" in line or "crops need" in line)
    assert "0.0 GB" not in line
