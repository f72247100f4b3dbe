"""The benchmark of losses: the order of its runs, its page, and the script on drawn faces."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from faces import TINY, write_dataset
from scripts import ROOT, interrupt_after, read_log, refusal, script
from test_protocols import write_folds

from benchmarks import page
from benchmarks.losses import Job, Workshop, finish
from benchmarks.plan import BASE, ROWS, read_tables
from benchmarks.results import Results, face_scores, scores_of
from benchmarks.upright import upright_source
from defaults import load_cfg
from evaluation.predictions import check_predictions
from lists import Source
from preprocess.columns import BOX
from preprocess.face import photo_quad
from utils.locks import only_writer

ONE_ROW = """
losses:
  baseline: ce
  learning_rates: [0.01]
  rotations: [fold0]
  seeds: [0]
  groups: {drawn: {title: From random weights, keys: {}}}
  rows:
    ce: {title: ce, keys: {LOSS.NAME: ce}, published: 4.38, aligned: false}
"""


# ---- The plan


BEST_RATES = {"ce": 0.003, "or_cnn": 0.0003}  # of the other rows 0.001


def valid_mae_of(run):
    """A search in which each loss has another best learning rate."""
    return 5 + abs(np.log(run.rate / BEST_RATES.get(run.row, 0.001)))


def test_what_the_runs_differ_in_cannot_be_given_for_all():
    plain, changed = (read_tables(opts=opts)["losses"] for opts in ((), ("MODEL.DROPOUT", "0.5")))
    assert changed.search(*changed.cells[0], {})[0].cfg.MODEL.DROPOUT == 0.5
    assert plain.varied_keys == {"TRAIN.LR", "TRAIN.SEED", "MODEL.PRETRAINED", "TRAIN.EPOCHS",
                                 "LOSS.NAME"}
    for key, value in (("TRAIN.LR", "0.01"), ("TRAIN.SEED", "5"), ("LOSS.NAME", "sord"),
                       ("MODEL.PRETRAINED", "none"), ("DATA.MARGIN", "0.2")):
        with pytest.raises(ValueError, match=f"differ in {key}, so it cannot be given for all"):
            read_tables(opts=("MODEL.DROPOUT", "0.5", key, value))


def test_all_losses_come_once_before_any_comes_twice():
    table, results = read_tables()["losses"], {}
    runs = []
    while (run := next(table.to_do(results), None)) is not None:
        runs.append(run)
        results[run.name] = {"valid_mae": valid_mae_of(run)}
    count = len(table.cells)
    first, neighbours = runs[:count], runs[count:3 * count]
    beyond, others = runs[3 * count:3 * count + 4], runs[3 * count + 4:]
    assert [(run.group, run.row) for run in first] == table.cells
    assert {run.rotation for run in (*first, *neighbours, *beyond)} == {"rotation0"}
    assert {run.rate for run in first} == {0.001}
    assert {run.rate for run in neighbours} == {0.0003, 0.003}
    assert [(run.row, run.rate) for run in beyond] == [("ce", 0.01), ("or_cnn", 0.0001)] * 2
    assert [run.rotation for run in others] == [
        f"rotation{number}" for number in range(1, 5) for _ in table.cells]
    assert {(run.row, run.rate) for run in others} == {
        (row, BEST_RATES.get(row, 0.001)) for row in table.rows}
    unforeseen = sum(run.cfg.TRAIN.EPOCHS for run in beyond)
    assert table.count_epochs({}) == sum(run.cfg.TRAIN.EPOCHS for run in runs) - unforeseen
    assert table.count_epochs(results) == 0


@pytest.mark.parametrize(("maes", "tried", "best", "is_over"), [
    ({}, [0.001, 0.0003, 0.003], None, False),
    ({0.001: 5.0}, [0.001, 0.0003, 0.003], 0.001, False),
    ({0.001: 5.0, 0.003: 4.0}, [0.001, 0.0003, 0.003], 0.003, False),
    ({0.001: 5.0, 0.0003: 6.0, 0.003: 5.5}, [0.001, 0.0003, 0.003], 0.001, True),
    ({0.001: 5.0, 0.0003: 6.0, 0.003: 4.0}, [0.001, 0.0003, 0.003, 0.01], 0.003, False),
    ({0.001: 5.0, 0.0003: 6.0, 0.003: 4.0, 0.01: None}, [0.001, 0.0003, 0.003, 0.01], 0.003, True),
    ({0.001: 5.0, 0.0003: 6.0, 0.003: 4.0, 0.01: 3.0, 0.03: 2.0},  # the last that there is
     [0.001, 0.0003, 0.003, 0.01, 0.03], 0.03, True),
    ({0.001: None, 0.0003: None, 0.003: None}, [0.001, 0.0003, 0.003, 0.0001], None, False)])
def test_the_search_goes_on_until_both_neighbours_are_worse(maes, tried, best, is_over):
    table = read_tables()["losses"]
    results = {table.run("random", "kl", "rotation0", 0, rate).name:
               {"error": "diverged"} if mae is None else {"valid_mae": mae}
               for rate, mae in maes.items()}
    assert [run.rate for run in table.search("random", "kl", results)] == tried
    assert table.best_rate("random", "kl", results) == best
    assert table.is_searched("random", "kl", results) == is_over


def test_one_group_can_be_run_alone():
    table = read_tables()["losses"]
    only = table.only(["random"])
    assert [run.name for run in only.to_do({})] == [
        run.name for run in table.to_do({}) if run.group == "random"]
    assert list(table.only([]).to_do({})) == []


def test_a_row_waits_for_its_learning_rate_and_does_without_one_that_diverged():
    table = read_tables()["losses"]
    first, lower, higher = table.search("imagenet", "ce", {})
    results = {first.name: {"valid_mae": 5.0}, lower.name: {"valid_mae": 6.0}}
    assert table.best_rate("imagenet", "ce", results) == first.rate
    assert not any(run.rotation != "rotation0" for run in table.to_do(results))
    results[higher.name] = {"error": "the training has diverged"}
    waiting = [run for run in table.to_do(results) if run.rotation != "rotation0"]
    assert {(run.row, run.rate) for run in waiting} == {("ce", first.rate)}
    assert table.missing("imagenet", "ce", results) == waiting and len(waiting) == 4
    results = {name: {"error": "the training has diverged"} for name in results}
    while not table.is_searched("imagenet", "ce", results):
        for run in table.search("imagenet", "ce", results):
            results[run.name] = {"error": "the training has diverged"}
    assert table.missing("imagenet", "ce", results) == []
    assert min(float(name.rpartition("lr")[2]) for name in results) == table.rates[0]


def test_every_row_has_a_config_of_its_own_and_one_budget():
    for table in read_tables().values():
        for group in table.groups:
            runs = [table.search(group, row, {})[0] for row in table.rows]
            assert len({(run.aligned, json.dumps(run.keys)) for run in runs}) == len(runs)
            assert {len(table.repeats(row)) for row in table.rows} <= {1, 3, 5}
    losses = read_tables()["losses"]
    for group in losses.groups:
        budgets = [{key: value for key, value in losses.search(group, row, {})[0].keys.items()
                    if not key.startswith("LOSS.")} for row in losses.rows]
        assert budgets == [budgets[0]] * len(losses.rows)


@pytest.mark.parametrize(("before", "after", "named"), [
    ("baseline: ce", "baseline: mse", "the baseline 'mse'"), ("LOSS.NAME: ce", "LOSS.NAM: ce",
    "unknown config key 'LOSS.NAM'"), ("rows:", "row:", "does not describe tables"),
    ("[0.01]", "[fast]", "does not describe tables .* 'fast'"),
    ("[0.01]", "[]", "'losses' has no learning_rates"),
    ("seeds: [0]", "seeds: []", "'losses' has no seeds"),
    ("losses:", "mine:", "no place for a table 'mine', only for losses, factors, votes"),
    ("published: 4.38", "seeds: 0", "seeds of the row 'ce' of 'losses' must be a whole number"),
    ("published: 4.38", "published: 4.3 (ours)", "published of the row 'ce' .* got '4.3 .ours.'")])
def test_a_wrong_table_is_refused(tmp_path, before, after, named):
    path = tmp_path / "rows.yaml"
    path.write_text(ONE_ROW.replace(before, after, 1))
    with pytest.raises(ValueError, match=named) as raised:
        read_tables(path)
    assert "\n" not in str(raised.value)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no tables"):
        read_tables(path)
    with pytest.raises(FileNotFoundError, match=ROWS.name):
        read_tables(tmp_path / "none.yaml")


# ---- Results and page


def predictions_of(shift, count=400, first=0, jitter=0.0):
    """Predictions of drawn ages, wrong by a normal error, a shift and a jitter, in any order."""
    rng = np.random.default_rng(first)
    ages = rng.integers(20, 60, count)
    centres = ages + rng.normal(0, 1, count) + shift + rng.normal(0, jitter, count)
    probs = np.exp(-0.5 * (np.arange(101) - centres[:, None]) ** 2 / 4)
    table = pd.DataFrame(probs / probs.sum(axis=1, keepdims=True),
                         columns=[f"p{age}" for age in range(101)])
    table.insert(0, "photo", [f"{first + number}.jpg" for number in range(count)])
    table.insert(1, "age", ages)
    table.insert(2, "pred_age", centres)
    return check_predictions(table.sample(frac=1, random_state=abs(hash(shift)) % 1000), "drawn")


def add_run(results, run, predictions):
    faces, digest = face_scores(predictions)
    results.add(run.name, {
        "config": run.keys, "rotation": run.rotation, "minutes": 4.5, "jobs": 2, "threads": 1,
        "machine": "drawn", "commit": "abc1234", "valid_mae": valid_mae_of(run), "best_epoch": 1,
        "test": scores_of(predictions), "test_faces": len(predictions.faces),
        "digest": digest}, faces)


def test_the_page_states_scores_and_paired_differences(tmp_path):
    tables, results = read_tables(), Results(tmp_path / "kept")
    table = tables["losses"]
    shifts = {"ce": 2.0, "kl": 0.5, "or_cnn": 3.0, "sord": 2.0}
    for number, rotation in enumerate(("rotation0", "rotation1", "rotation2")):
        for row, shift in shifts.items():
            rate = min(table.rates, key=lambda rate: abs(
                np.log(rate / BEST_RATES.get(row, 0.001))))
            add_run(results, table.run("imagenet", row, rotation, 0, rate),
                    predictions_of(shift, first=1000 * number, jitter=0.5 * (row == "sord")))
    losers = [table.run("imagenet", "ce", rotation, 0, 0.001)
              for rotation in ("rotation0", "rotation1")]  # the rate that won before it was beaten
    for loser in losers:
        add_run(results, loser, predictions_of(5.0))
    assert table.beaten("imagenet", "ce", results) == losers
    add_run(results, table.run("random", "kl", "rotation0", 0, 0.001), predictions_of(9.0))
    page.write_page(tables, results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")

    lines = dict(zip(table.rows, page.table_lines(table, "imagenet", results), strict=True))
    maes = [results[name]["test"]["mae"] for name in lines["ce"].runs]
    assert len(maes) == 3 and lines["ce"].rate == 0.003 and not lines["ce"].is_searched
    medians = [results[name]["test"]["mae_median"] for name in lines["ce"].runs]
    assert f"| {np.mean(maes):.2f} ({np.std(maes, ddof=1):.2f}) | {np.mean(medians):.2f} (" in text
    kl, sord = lines["kl"].differences["mae"], lines["sord"].differences["mae"]
    expected = np.mean([results[name]["test"]["mae"] for name in lines["kl"].runs]) - np.mean(maes)
    assert kl["value"] == pytest.approx(expected, abs=0.01)  # from half precision
    assert kl["significant"] and not sord["significant"]
    assert kl["low"] < kl["value"] < kl["high"] < 0
    assert lines["kl"].wins == (3, 3)
    assert "From ImageNet weights, against `ce` (cross-entropy): a smaller MAE: `kl` (DLDL); " \
           "a larger MAE: `or_cnn` (OR-CNN); no difference shown: `sord` (SORD) (so far; " \
           "runs are missing). The learning rates marked \"?\" below are still searched" in text
    assert f"| `kl` (DLDL) | **\N{MINUS SIGN}{-kl['value']:.2f}** (" in text
    assert f"| `sord` (SORD) | {sord['value']:+.2f} (".replace("-", "\N{MINUS SIGN}") in text
    first = results[lines["kl"].runs[0]]["test"]["mae"]
    both = [np.mean([results[name]["test"]["mae"] for name in lines["kl"].runs]),
            results[table.run("random", "kl", "rotation0", 0, 0.001).name]["test"]["mae"]]
    assert both[1] > both[0] > 0 and first > 0
    assert f"| `kl` (DLDL) | 4.39 | {both[0]:.2f} (" in text and f") | {both[1]:.2f} |\n" in text
    # Of 7 runs a row, 4 rows have 3, ce one rate more, and the others none; random rows have one.
    needed = 7 * len(table.rows)
    assert f"Missing: losses, From ImageNet weights, {needed - 13} runs; losses, From random " \
           f"weights, {needed - 1} runs" in text
    assert "rotation0 400,\n  rotation1 400,\n  rotation2 400." in text
    assert "drawn, 2 runs side by side, 1 thread each: 13 runs of 4.5 to 4.5 minutes." in text
    [_, keys] = re.search(r"--protocol rotation0 --checkpoint RUN (\\)\n +(.*)\n", text).groups()
    assert load_cfg(BASE, keys.split()) == table.run("imagenet", "ce", "rotation0", 0, 0.003).cfg
    assert not {loser.name for loser in losers} & {
        name for line in lines.values() for name in line.runs}
    assert Results(tmp_path / "kept") == results
    assert "|  | 0.0003 | 0.001 | 0.003 |\n" in text
    assert "| `ce` (cross-entropy), from ImageNet weights |  | 6.10 | 5.00 |\n" in text
    assert "| `or_cnn` (OR-CNN), from ImageNet weights | 5.00 |  |  |\n" in text
    assert "For scale" not in text  # rows are missing

    for row in table.rows:
        add_run(results, table.run("random", row, "rotation0", 0, 0.001), predictions_of(9.0))
    early = lines["ce"].runs[0]
    del results[early]["test"]["mae_median"]  # as in records before it was kept
    page.write_page(tables, results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"above reach from {both[1]:.2f} to {both[1]:.2f} from random weights." in text
    assert f"| {np.mean(maes):.2f} ({np.std(maes, ddof=1):.2f}) |  |" in text


def test_a_run_that_diverged_is_named_and_not_missing(tmp_path):
    (tmp_path / "rows.yaml").write_text(
        ONE_ROW.replace("[fold0]", "[fold0, fold1]") + "    kl: {title: kl, keys: {}}\n")
    tables, results = read_tables(tmp_path / "rows.yaml"), Results(tmp_path)
    for row, shift in (("ce", 2.0), ("kl", 0.5)):
        for first, rotation in enumerate(("fold0", "fold1")):
            if results:
                page.write_page(tables, results, tmp_path / "page.md")
                text = (tmp_path / "page.md").read_text(encoding="utf-8")
                assert "Missing: losses, From random weights" in text
            add_run(results, tables["losses"].run("drawn", row, rotation, 0, 0.01),
                    predictions_of(shift, first=1000 * first))
    lost = tables["losses"].run("drawn", "kl", "fold1", 0, 0.01).name
    results.add(lost, {"error": "the training has diverged"})
    page.write_page(tables, results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Missing" not in text and f"left out: {lost}." in text
    assert "against ce: a smaller MAE in fewer than three runs: kl.\n" in text  # and no more
    assert "| kl |" in text and "1 of 2" in text


def test_rows_on_other_faces_are_not_compared(tmp_path):
    table, results = read_tables()["losses"], Results(tmp_path)
    for row, first in (("ce", 0), ("kl", 1)):  # elsewhere, of other photos
        add_run(results, table.run("imagenet", row, "rotation0", 0, 0.001),
                predictions_of(1.0, first=first))
    assert page.table_lines(table, "imagenet", results)[1].differences == {}


def test_seeds_on_the_same_faces_are_averaged(tmp_path):
    table, results = read_tables()["factors"], Results(tmp_path)
    for seed, (base, other) in enumerate(((1.0, 3.0), (3.0, 1.0))):
        add_run(results, table.run("imagenet", "base", "rotation0", seed, 0.001),
                predictions_of(base))
        add_run(results, table.run("imagenet", "sigma_1", "rotation0", seed, 0.001),
                predictions_of(other))
    lines = dict(zip(table.rows, page.table_lines(table, "imagenet", results), strict=True))
    assert lines["sigma_1"].differences["mae"]["value"] == pytest.approx(0, abs=1e-6)
    assert lines["sigma_1"].wins == (1, 2)


def test_seeds_on_other_faces_are_pooled(tmp_path):
    table, results = read_tables()["factors"], Results(tmp_path)
    for seed, (count, shift) in enumerate(((400, 6.0), (300, 4.0))):  # of two machines
        for row, mine in (("base", 4.0), ("sigma_1", shift)):
            add_run(results, table.run("imagenet", row, "rotation0", seed, 0.001),
                    predictions_of(mine, count=count, first=1000 * seed))
    lines = dict(zip(table.rows, page.table_lines(table, "imagenet", results), strict=True))
    mae = lines["sigma_1"].differences["mae"]["value"]
    assert mae == pytest.approx(2 * 400 / 700, abs=0.01)


@pytest.mark.parametrize(("value", "is_significant", "wins", "expected"), [
    (-0.1, True, (5, 5), "a smaller MAE"), (0.1, True, (0, 3), "a larger MAE"),
    (-0.1, True, (4, 5), page.NO_DIFFERENCE), (0.1, True, (1, 5), page.NO_DIFFERENCE),
    (-0.1, False, (5, 5), page.NO_DIFFERENCE),
    (-0.1, True, (2, 2), "a smaller MAE in fewer than three runs"),
    (0.1, True, (0, 1), "a larger MAE in fewer than three runs")])
def test_a_difference_counts_if_the_runs_agree(value, is_significant, wins, expected):
    number = {"value": value, "significant": is_significant}
    line = page.Line(None, None, True, [], 5, {}, None, {"mae": number}, wins)
    assert page.verdict(line) == expected


def test_what_is_kept_of_a_face_is_small_and_in_the_order_of_the_photos():
    one, digest = face_scores(predictions_of(1.0))
    other, same_digest = face_scores(predictions_of(2.0))
    assert digest == same_digest
    np.testing.assert_array_equal(one["age"], other["age"])
    np.testing.assert_allclose(other["pred_age"] - one["pred_age"], 1, atol=0.07)
    assert sum(values.nbytes for values in one.values()) == 8 * 400


def test_damaged_and_missing_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json' is damaged .*; restore it from git"):
        Results(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a\.npz' not found; restore it"):
        Results(tmp_path / "other").faces("a")


def test_lines_that_came_in_meanwhile_stay(tmp_path):
    here, elsewhere = Results(tmp_path), Results(tmp_path)
    elsewhere.add("one", {"valid_mae": 5.0})
    here.add("other", {"valid_mae": 6.0})
    assert Results(tmp_path) == here == {"one": {"valid_mae": 5.0}, "other": {"valid_mae": 6.0}}


# ---- The script


def ended_run(place, error):
    """A Job that has ended with an error line, whose training has left checkpoints."""
    table = read_tables()["losses"]
    run = table.search(*table.cells[0], {})[0]
    (place / "config.yaml").write_text(run.cfg.dump())
    for name in ("last.pth", "best.pth", "epoch001_3.0_5.0.pth"):
        (place / name).touch()
    says = f"print('error: {error}'); raise SystemExit(1)"
    job = Job(run, place, [[sys.executable, "-c", says]], dict(os.environ), "abc1234")
    job.process.wait()
    return job, Results(place / "kept"), Workshop([], place, 1, 1, "cpu", None), table


def test_of_a_run_that_diverged_only_the_best_checkpoint_is_kept(tmp_path):
    job, results, *about = ended_run(tmp_path, "after epoch 2: the training has diverged; choose")
    finish(job, results, *about)
    assert "diverged" in results[job.run.name]["error"]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["best.pth"]


def test_a_folder_named_diverged_is_not_a_run_that_diverged(tmp_path):
    job, results, *about = ended_run(tmp_path, "disk full: /runs/diverged/last.pth")
    with pytest.raises(ValueError, match="failed: disk full"):
        finish(job, results, *about)
    assert results == {} and (tmp_path / "last.pth").is_file()


def command(data, place, *words):
    return [sys.executable, "-m", "benchmarks.losses", "--rows", place / "rows.yaml", "--results",
            place / "kept", "--page", place / "page.md", *(
                ["--data_dir", data, "--runs", place / "runs", "--cache_dir", place / "cache",
                 "--device", "cpu", "--jobs", "2"] if data else []), *words]


def start(*words):
    return subprocess.Popen(list(map(str, command(*words))), cwd=ROOT, text=True,
                            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*words):
    process = start(*words)
    printed = process.communicate(timeout=300)
    return subprocess.CompletedProcess("losses", process.returncode, *printed)


def write_one_row(place, epochs):
    """Faces, the words of a table with one row, and the folder of its only run."""
    data = write_folds(place / "data", ("train", "train", "valid", "test"))
    (place / "rows.yaml").write_text(ONE_ROW)
    return (data, [*TINY, "TRAIN.EPOCHS", str(epochs)],
            place / "runs" / "losses-drawn-ce-fold0-seed0-lr0.01")


def test_the_script_is_interrupted_goes_on_and_rebuilds_its_page(tmp_path):
    data, words, ce = write_one_row(tmp_path, epochs=40)
    process = start(data, tmp_path, *words)
    out = interrupt_after(process, ce, 1, lambda process: process.send_signal(signal.SIGTERM))
    assert process.returncode == 130, out
    assert "interrupted: 0 runs finished, 1 saved" in out
    assert 0 < len(read_log(ce)) < 40

    done = run(data, tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record["epoch"] for record in read_log(ce)] == list(range(1, 41))
    assert not list(ce.glob("earlier-*"))
    assert [path.name for path in ce.glob("*.pth")] == ["best.pth"]
    results = Results(tmp_path / "kept")
    assert [*results] == [ce.name]
    assert f"{ce.name}: test mae {results[ce.name]['test']['mae']:.3f}" in done.stdout
    best = min(read_log(ce), key=lambda record: record["valid"]["mae"])
    assert results[ce.name]["valid_mae"] == pytest.approx(best["valid"]["mae"], abs=1e-4)
    assert results[ce.name]["best_epoch"] == best["epoch"]
    assert results[ce.name]["test_faces"] == 2
    assert results[ce.name]["config"]["LOSS.NAME"] == "ce"
    assert results[ce.name]["config"]["MODEL.ARCH"] == "timm/test_resnet"
    table = pd.read_csv(ce / "test.csv")
    errors = (table["pred_age"] - table["age"]).abs()
    assert results[ce.name]["test"]["mae"] == pytest.approx(errors.mean(), abs=1e-3)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"| ce | {errors.mean():.2f} |" in text and "Missing" not in text
    assert "timm/test_resnet at 32 px" in text

    (tmp_path / "page.md").unlink()
    again = run(None, tmp_path, *words)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    for faces in (data, None):  # to train, and to write the page alone
        other = refusal(run(faces, tmp_path, *words, "MODEL.DROPOUT", "0.5"))
        assert "with MODEL.DROPOUT 0.2, not 0.5; give the same KEY VALUE pairs" in other
    with only_writer(tmp_path / "kept", "wait"):
        assert f"another process writes to '{tmp_path / 'kept'}'" in refusal(
            run(data, tmp_path, *words, "--runs", tmp_path / "other runs"))
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text

    (tmp_path / "rows.yaml").write_text(ONE_ROW.replace("[0.01]", "[0.01, 0.002, 1e30]"))
    done = run(data, tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = Results(tmp_path / "kept")
    assert len(results) == 3
    [diverged] = [name for name in results if "diverged" in results[name].get("error", "")]
    assert diverged.endswith("lr1e+30") and f"left out: {diverged}" in (
        tmp_path / "page.md").read_text(encoding="utf-8")
    best = min(set(results) - {diverged}, key=lambda name: results[name]["valid_mae"])
    assert [path.stem for path in (tmp_path / "kept" / "faces").iterdir()] == [best]


TWO_DATA_SETS = ONE_ROW.replace("  baseline", "  dataset: drawn\n  baseline") + """
votes:
  dataset: guessed
  baseline: sigma_2
  learning_rates: [0.01]
  rotations: [official]
  seeds: [0]
  groups: {drawn: {title: drawn, keys: {}}}
  rows: {sigma_2: {title: sigma 2, keys: {}}}
"""


def test_each_table_is_run_on_its_data_set(tmp_path):
    folds = write_folds(tmp_path / "folds", ("train", "train", "valid", "test"))
    write_dataset(tmp_path / "data", [20, 40, 60], name="guessed")
    (tmp_path / "rows.yaml").write_text(TWO_DATA_SETS)
    words = [*TINY, "TRAIN.EPOCHS", "1"]
    done = run(tmp_path / "data", tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: 'losses', which is of the data set drawn, not guessed" in done.stdout
    results = Results(tmp_path / "kept")
    assert {name: (record["split"], record["test_faces"]) for name, record in results.items()} == {
        "votes-drawn-sigma_2-official-seed0-lr0.01": ("valid", 3)}
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "the 3 faces of the valid part are tested" in text
    assert "Missing: losses, From random weights, 1 run." in text

    done = run(tmp_path / "data", tmp_path, "--data_dir", folds, tmp_path / "data", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    [added] = set(Results(tmp_path / "kept")) - set(results)
    assert added.startswith("losses") and Results(tmp_path / "kept")[added]["split"] == "test"
    other = run(folds, tmp_path, "--tables", "votes", *words)
    assert "no table is of the data set drawn" in refusal(other)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_runs_of_a_start_that_was_killed_are_named(tmp_path):
    data, words, ce = write_one_row(tmp_path, epochs=100_000)
    process = start(data, tmp_path, *words)
    interrupt_after(process, ce, 1, subprocess.Popen.kill)
    owner = (ce / ".lock.owner").read_text(encoding="utf-8")
    left = int(re.match(r"process (\d+) on ", owner)[1])
    try:
        line = refusal(run(data, tmp_path, *words))
        assert f"another process writes to '{ce}': {owner}; a start of this script" in line
        assert "end it with kill and its number" in line and "--checkpoint" not in line
    finally:
        os.kill(left, signal.SIGTERM)
    deadline = time.time() + 60
    while (ce / ".lock.owner").exists():
        assert time.time() < deadline
        time.sleep(0.1)
    assert (ce / "last.pth").is_file()


@pytest.mark.parametrize(("words", "named"), [
    (["--tables", "other"], "has no 'other', only "),
    (["--groups", "drawn", "other"], "--groups: losses has no 'other', only drawn"),
    (["--data_dir", "."], "no --runs"),
    (["--page", "{data}"], "is a folder; name a file in it"),
    (["--page", "{data}/drawn_0.png/page.md"], "/drawn_0.png' is a file; name a folder"),
    (["--data_dir", "{data}", "--runs", "{runs}", "--jobs", "0"], "--jobs must be positive, got 0"),
    (["--data_dir", "{data}", "--runs", "{runs}", "TRAIN.OPT", "mse"], "unknown TRAIN.OPT 'mse'"),
    (["TRAIN.SEED", "5"], "the runs of 'losses' differ in TRAIN.SEED, so it cannot be given"),
    (["--data_dir", "{other}", "--runs", "{runs}"], "protocol 'fold0' not found")])
def test_wrong_words_are_refused(tmp_path, words, named):
    write_folds(tmp_path / "data", ("train", "train", "valid", "test"))
    write_folds(tmp_path / "other", ("train", "train", "valid", "test"))
    (tmp_path / "other" / "drawn_split_fold0.csv").unlink()
    (tmp_path / "rows.yaml").write_text(ONE_ROW)
    places = {name: tmp_path / name for name in ("data", "other", "runs")}
    usual = command(None, tmp_path)[3:]  # without python -m benchmarks.losses
    done = script("benchmarks/losses.py", *usual, *(word.format(**places) for word in words),
                  check=False)
    assert named in refusal(done)
    assert not (tmp_path / "kept").exists()


def test_faces_that_are_not_aligned_keep_the_place_and_size_of_their_boxes(tmp_path):
    data = write_folds(tmp_path / "data", ("train", "train", "valid", "test"))
    source = Source(data, "drawn", data)
    upright = upright_source(source, tmp_path / "upright")
    assert upright.file("split_fold1").read_text() == source.file("split_fold1").read_text()
    before, after = (pd.read_csv(each.file("train_align")) for each in (source, upright))
    assert (before["deg"] == 3.5).all() and (after["deg"] == 0).all()
    for (_, turned), (_, straight) in zip(before.iterrows(), after.iterrows(), strict=True):
        corners = [photo_quad(row[BOX], (96, 96), row["deg"]) for row in (turned, straight)]
        np.testing.assert_allclose(*(each.mean(axis=0) for each in corners), atol=0.02)
        np.testing.assert_allclose(*(np.ptp(row[BOX].to_numpy(float).reshape(2, 2), axis=0)
                                     for row in (turned, straight)), atol=0.02)
