"""One command that trains and tests several split files in turn."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faces import TINY, write_dataset, write_list
from scripts import AGES, interrupt_after, refusal, script, start_training, train, weights

from training import loop


def write_folds(folder, splits):
    """Lists of eight faces and two split files fold0, fold1 that go through the splits."""
    write_dataset(folder, AGES, splits=("train",))
    for fold in range(2):
        write_fold(folder, fold, splits)
    return folder


def write_fold(folder, fold, splits):
    write_list(folder / f"drawn_split_fold{fold}.csv", [
        {"photo": f"drawn_{i}.png", "split": splits[(i + fold) % len(splits)]}
        for i in range(len(AGES))])


SPLITS = ("train", "train", "valid", "test")
WORDS = ["--protocol", "fold*", *TINY, "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, the run trained on both protocols, and the lines that train.py printed."""
    place = tmp_path_factory.mktemp("folds")
    folder = write_folds(place / "data", SPLITS)
    return folder, place / "run", train(folder, place / "run", *WORDS).stdout.splitlines()


def fold_maes(lines):
    return [float(line.split()[-1]) for line in lines if re.match(r"fold\d: test mae:", line)]


def test_protocols_end_in_the_mean_and_spread_of_their_scores(trained):
    lines = trained[-1]
    maes = fold_maes(lines)
    assert len(maes) == 2
    told = re.fullmatch(r"test mae: (\S+) \(sd (\S+) over 2 protocols\)", lines[-1])
    assert float(told[1]) == pytest.approx(np.mean(maes), abs=0.0015)
    assert float(told[2]) == pytest.approx(np.std(maes, ddof=1), abs=0.0015)


def test_the_spread_over_protocols_is_that_of_a_sample(trained, monkeypatch):
    folder, run, _ = trained
    maes = iter([4.0, 7.0])
    monkeypatch.setattr(loop, "predict_split", lambda *_, **__: SimpleNamespace(
        scores=lambda: {"mae": next(maes)}))
    lines = train(folder, run, *WORDS).stdout.splitlines()
    assert lines[-1] == "test mae: 5.500 (sd 2.121 over 2 protocols)"


def test_a_command_that_is_done_only_tests_again(trained):
    folder, run, lines = trained
    log = (run / "fold1" / "log.jsonl").read_text()
    again = train(folder, run, *WORDS).stdout.splitlines()
    assert again[-1] == lines[-1]
    assert (run / "fold1" / "log.jsonl").read_text() == log


def test_a_command_goes_on_with_teachers_that_were_moved_and_with_no_others(trained, tmp_path):
    folder, run, _ = trained
    teacher = shutil.copy(run / "fold0" / "best.pth", tmp_path / "a.pth")
    train(folder, tmp_path / "run", *WORDS, "LOSS.TEACHER", teacher)
    moved = teacher.rename(tmp_path / "b.pth")
    lines = train(folder, tmp_path / "run", *WORDS, "LOSS.TEACHER", moved).stdout.splitlines()
    assert len(fold_maes(lines)) == 2
    done = train(folder, tmp_path / "run", *WORDS, "LOSS.TEACHER", run / "fold1" / "best.pth",
                 check=False)
    error = refusal(done)
    assert "names other files" in error and "name another folder with --checkpoint" in error


def test_the_test_script_agrees_with_a_protocols_score(trained):
    folder, run, lines = trained
    tested = script("test.py", "--data_dir", folder, "--protocol", "fold1", "--resume",
                    run / "fold1" / "best.pth", "--cache_dir", run.parent / "cache")
    assert tested.stdout.splitlines()[-1] == f"test mae: {fold_maes(lines)[1]:.3f}"


@pytest.mark.parametrize(("changes", "named"), [
    (["TRAIN.BATCH_SIZE", "3"], "TRAIN.BATCH_SIZE 4, not 3"),
    (["LOSS.NAME", "ce"], "LOSS.NAME kl_l1, not ce"),
    (["MODEL.ARCH", "timm/test_vit"], "timm/test_resnet, not")])
def test_another_run_is_not_continued(trained, changes, named):
    folder, run, _ = trained
    assert named in refusal(train(folder, run, *WORDS, *changes, check=False))


def test_a_run_on_another_data_set_is_not_continued(trained, tmp_path):
    folder, run, _ = trained
    shutil.copytree(run, tmp_path / "run")
    last = tmp_path / "run" / "fold0" / "last.pth"
    torch.save(weights(last) | {"datasets": ["other"]}, last)
    assert "--dataset ['other'], not ['drawn']" in refusal(
        train(folder, tmp_path / "run", *WORDS, check=False))


@pytest.mark.parametrize("protocol", [[], ["--protocol", "fold0"]])
def test_a_protocols_checkpoint_is_continued_on_that_protocol_only(trained, tmp_path, protocol):
    folder, run, _ = trained
    done = train(folder, tmp_path / "other", "--resume", run / "fold1" / "last.pth", *protocol,
                 check=False)
    assert "of a run with --protocol fold1" in refusal(done)


def test_a_protocol_without_a_test_split_is_refused_before_any_is_trained(tmp_path):
    folder = write_folds(tmp_path / "data", SPLITS)
    write_fold(folder, 1, ("train", "train", "valid", "valid"))
    done = train(folder, tmp_path / "new", *WORDS, check=False)
    assert "drawn_split_fold1.csv' has no test split" in refusal(done)
    assert not (tmp_path / "new").exists()


def test_ctrl_c_at_the_end_of_a_protocol_starts_no_other(tmp_path):
    folder, run = write_folds(tmp_path / "data", SPLITS), tmp_path / "run"
    words = [*WORDS, "--tensorboard", str(tmp_path / "tf_log")]
    process = start_training(folder, run, *words)  # drawing comes after the line in the log
    printed = interrupt_after(process, run / "fold0", epochs=1)
    assert process.returncode == 130
    assert "continue with: the same command" in printed
    assert not (run / "fold1").exists()
    train(folder, run, *words)
    assert (run / "fold1" / "best.pth").is_file()


def test_protocols_of_intervals_end_in_their_scores(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, AGES, splits=("train",), columns={
        "age_min": [age - 4 for age in AGES], "age_max": [age + 4 for age in AGES]})
    for fold in range(2):
        write_fold(folder, fold, SPLITS)
    told = train(folder, tmp_path / "run", *WORDS)
    lines = told.stdout.splitlines()
    assert re.fullmatch(r"distance to the interval, years: \S+ \(sd \S+ over 2 protocols\)",
                        lines[-1])
    assert "mae" not in lines[-1] and lines[-2].startswith("in the right interval, %: ")


def test_a_protocol_is_tested_with_its_best_epoch(tmp_path):
    folder, run = tmp_path / "data", tmp_path / "run"
    write_dataset(folder, AGES, splits=("train",))
    splits = ("train", "train", "valid", "test")
    for fold in range(2):
        write_list(folder / f"drawn_split_fold{fold}.csv", [
            {"photo": f"drawn_{i}.png", "split": splits[(i + fold) % 4]} for i in range(8)])
    words = ["--protocol", "fold*", *TINY, "TRAIN.EPOCHS", "1"]
    lines = train(folder, run, *words).stdout.splitlines()
    last = weights(run / "fold1" / "last.pth")
    last["model"]["head.bias"][100] += 1000  # as if it had become worse since
    torch.save(last, run / "fold1" / "last.pth")
    assert train(folder, run, *words).stdout.splitlines()[-1] == lines[-1]
