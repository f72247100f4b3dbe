"""The page docs/benchmark.md, from what the benchmark's runs gave."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.plan import BASE
from benchmarks.results import PER_FACE
from defaults import load_cfg
from evaluation.bootstrap import bootstrap_sums, measured, pooled_means
from utils.cli import count_text
from utils.files import replaced

SAMPLES = 4000  # of the bootstrap; of fewer, the ends of an interval differ by 0.02 years by chance
SHOWN = {"mae": ("MAE", 2), "mae_median": ("MAE, median", 2), "ca5": ("CA(5)", 1),
         "nll": ("NLL", 3), "crps": ("CRPS", 2), "coverage_80": ("80% covers", 1),
         "coverage_90": ("90% covers", 1)}  # title, decimals
COMPARED = ("mae", "nll", "crps")
NO_DIFFERENCE, IN_FEW_RUNS = "no difference shown", "in fewer than three runs"
VERDICTS = ("a smaller MAE", "a larger MAE", f"a smaller MAE {IN_FEW_RUNS}",
            f"a larger MAE {IN_FEW_RUNS}", NO_DIFFERENCE)
MIN_REPEATS = 3  # runs of a row, before the summary says that it differs


class Line(NamedTuple):
    """A row of a table as it is shown.

    row: plan.Row.
    rate: its learning rate, or None while no run has ended; is_searched: whether it is final.
    runs: names of its tested runs.
    count: how many runs it should have.
    scores: {metric: (mean, standard deviation or None)} over the runs, of what all of them have.
    minutes: mean of a training.
    differences: {metric: measured number} to the baseline; {} for the baseline itself.
    wins: (how many repeats have a smaller MAE than the baseline, how many are compared).
    """

    row: object
    rate: float | None
    is_searched: bool
    runs: list
    count: int
    scores: dict
    minutes: float | None
    differences: dict
    wins: tuple


def write_page(tables, results, path):
    """Write the page.

    Args:
        tables: {name: plan.Table}.
        results: results.Results.
        path: file to write.
    """
    lines = {(name, group): table_lines(table, group, results)
             for name, table in tables.items() for group in table.groups}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent),
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [name for found in lines.values() for line in found for name in line.runs]
    records = [results[name] for name in shown]
    first = next(iter(tables.values()))
    environment.filters["count"] = count_text
    text = environment.get_template("page.md.jinja").render(
        cfg=load_cfg(BASE, first.opts), losses=tables.get("losses"), factors=tables.get("factors"),
        votes=tables.get("votes"),
        scores={key: score_table(found) for key, found in lines.items()},
        differences={key: difference_table(found) for key, found in lines.items()},
        example=example_run(first, results),
        published=published_table(tables["losses"], lines) if "losses" in tables else "",
        searches=search_table(tables["losses"], results) if "losses" in tables else "",
        loss_ranges=loss_ranges(tables["losses"], lines) if "losses" in tables else {},
        faces=counted_faces(lines, results), machines=counted_machines(records),
        missing=missing_runs(tables, results),
        findings=list(filter(None, (
            finding(tables[name], group, found, results)
            for (name, group), found in lines.items()))),
        commits=sorted({record["commit"] for record in records}),
        diverged=sorted(name for name, record in results.items() if "error" in record))
    with replaced(path) as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")


def example_run(table, results):
    """The first run of the first row, at the best learning rate so far."""
    group, row = table.cells[0]
    rate = table.best_rate(group, row, results) or table.first_rate
    return table.run(group, row, *table.repeats(row)[0], rate)


def table_lines(table, group, results):
    """[Line] of the rows of one group."""
    return [_line(table, group, row, results) for row in table.rows]


def _line(table, group, row, results):
    names = tested_runs(table, group, row, results)
    tests = [results[name]["test"] for name in names.values()]
    differences, wins = {}, (0, 0)
    if row != table.baseline:
        differences, wins = compare(names, tested_runs(table, group, table.baseline, results),
                                    results)
    return Line(
        row=table.rows[row], rate=table.best_rate(group, row, results),
        is_searched=table.is_searched(group, row, results), runs=list(names.values()),
        count=len(table.repeats(row)), differences=differences, wins=wins,
        scores={key: _spread([test[key] for test in tests]) for key in SHOWN
                if tests and all(key in test for test in tests)},
        minutes=np.mean([results[name]["minutes"] for name in names.values()]) if names else None)


def tested_runs(table, group, row, results):
    """{(rotation, seed): name of the run} of a row, at its learning rate, where it is known."""
    rate = table.best_rate(group, row, results)
    if rate is None:
        return {}
    runs = {repeat: table.run(group, row, *repeat, rate).name for repeat in table.repeats(row)}
    return {repeat: name for repeat, name in runs.items() if "test" in results.get(name, {})}


def _spread(values):
    return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else None


def compare(runs, baseline, results):
    """Paired bootstrap of a row minus the baseline, over the faces that both were tested on.

    A face counts with the mean over the seeds that were tested on the same faces. The faces of
    several rotations are pooled, since no face is in the test part of two.

    Args:
        runs, baseline: {(rotation, seed): name of the run}.
        results: results.Results.
    Returns:
        {metric: measured number, and whether it is "significant": its interval excludes 0},
        (repeats in which the row has the smaller MAE, repeats compared).
    """
    shared = [repeat for repeat in runs if repeat in baseline
              and results[runs[repeat]]["digest"] == results[baseline[repeat]]["digest"]]
    if not shared:
        return {}, (0, 0)
    by_faces = {}
    for repeat in shared:
        mine, theirs = (_losses_of(results.faces(names[repeat])) for names in (runs, baseline))
        faces = repeat[0], results[runs[repeat]]["digest"]
        by_faces.setdefault(faces, []).append(mine - theirs)
    values = np.concatenate([np.mean(seeds, axis=0) for seeds in by_faces.values()])
    sums, numbers = bootstrap_sums(values, np.zeros(len(values), dtype=int), 1, SAMPLES)
    replicates = pooled_means(sums, numbers, [0])
    differences = {}
    for column, key in enumerate(COMPARED):
        number = measured(values[:, column].mean(), replicates[:, column], len(values))
        differences[key] = number | {"significant": number["low"] is not None and (
            number["low"] > 0 or number["high"] < 0)}
    wins = sum(seed[:, 0].mean() < 0 for seeds in by_faces.values() for seed in seeds)
    return differences, (int(wins), len(shared))


def _losses_of(faces):
    """(B, 3) absolute error, NLL and CRPS of each face."""
    age, pred_age, nll, crps = (faces[name] for name in PER_FACE)
    return np.stack([np.abs(pred_age - age), nll, crps], axis=1)


# ---- In words


def spread_text(score, digits):
    """A mean with its standard deviation in brackets, if there is one; "" for no mean."""
    if score is None:
        return ""
    mean, sd = score
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ({sd:.{digits}f})")


def difference_text(number, digits):
    """A difference with its interval, in bold if it is significant."""
    bold = "**" if number["significant"] else ""
    text = f"{bold}{number['value']:+.{digits}f}{bold}"
    if number["low"] is not None:
        text += f" ({number['low']:+.{digits}f} to {number['high']:+.{digits}f})"
    return text.replace("-", "\N{MINUS SIGN}")


def score_table(lines):
    """The scores of a group's rows as a table of Markdown; the median if a row has it."""
    shown = {key: about for key, about in SHOWN.items()
             if key != "mae_median" or any(key in line.scores for line in lines)}
    header = ["", *(title for title, _ in shown.values()), "learning rate", "minutes", "runs"]
    return markdown_table(header, [[
        line.row.title,
        *(spread_text(line.scores.get(key), digits) for key, (_, digits) in shown.items()),
        "" if line.rate is None else f"{line.rate:g}{'' if line.is_searched else '?'}",
        "" if line.minutes is None else f"{line.minutes:.1f}",
        f"{len(line.runs)} of {line.count}"] for line in lines])


def difference_table(lines):
    """How a group's rows differ from the baseline, as a table of Markdown; "" if none is known."""
    rows = [[line.row.title,
             *(difference_text(line.differences[key], SHOWN[key][1]) for key in COMPARED),
             f"{line.wins[0]} of {line.wins[1]}"] for line in lines if line.differences]
    header = ["", *(f"Δ {SHOWN[key][0]}" for key in COMPARED), "smaller MAE in"]
    return markdown_table(header, rows) if rows else ""


def published_table(table, lines):
    """The MAE of each loss as published, and ours, as a table of Markdown."""
    titles = [about.title for about in table.groups.values()]
    header = ["", "published: ResNet-50 from IMDB",
              *(f"ours: {_within(title)}" for title in titles)]
    return markdown_table(header, [[
        line.row.title, "" if line.row.published is None else f"{line.row.published:.2f}",
        *(spread_text(lines[table.name, group][place].scores.get("mae"), SHOWN["mae"][1])
          for group in table.groups)]
        for place, line in enumerate(lines[table.name, next(iter(table.groups))])])


def search_table(table, results):
    """The MAE on valid of each learning rate that was tried, as a table of Markdown."""
    tried = {}
    for group, row in table.cells:
        for run in table.search(group, row, results):
            if run.name in results:
                mae = results[run.name].get("valid_mae")
                tried.setdefault((group, row), {})[run.rate] = \
                    "diverged" if mae is None else f"{mae:.2f}"
    rates = sorted({rate for maes in tried.values() for rate in maes})
    return markdown_table(["", *(f"{rate:g}" for rate in rates)], [
        [f"{table.rows[row].title}, {_within(table.groups[group].title)}",
         *(maes.get(rate, "") for rate in rates)] for (group, row), maes in tried.items()])


def loss_ranges(table, lines):
    """{title of a group in a sentence: (smallest, largest MAE)}, of those that lack no row."""
    ranges = {}
    for group, about in table.groups.items():
        maes = [line.scores["mae"][0] for line in lines[table.name, group] if line.runs]
        if len(maes) == len(table.rows):
            ranges[_within(about.title)] = min(maes), max(maes)
    return ranges


def _within(title):
    """A title as it stands within a sentence."""
    return title[0].lower() + title[1:]


def markdown_table(header, rows):
    """A table of Markdown from lists of text."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def verdict(line):
    """One of VERDICTS: how the MAE of a row differs from the baseline's.

    The interval speaks of the choice of the test faces alone. Equal recipes differ by the luck of
    a training too, so a difference counts only if it has the same sign in each of at least
    MIN_REPEATS runs: equal recipes do in one of four sets of three runs, and in one of sixteen sets
    of five.
    """
    number, (wins, repeats) = line.differences["mae"], line.wins
    is_smaller = number["value"] < 0
    if not number["significant"] or wins != (repeats if is_smaller else 0):
        return NO_DIFFERENCE
    kind = "a smaller MAE" if is_smaller else "a larger MAE"
    return kind if repeats >= MIN_REPEATS else f"{kind} {IN_FEW_RUNS}"


def finding(table, group, lines, results):
    """A sentence that says which rows of a group differ from the baseline in MAE, or None.

    Args:
        table: plan.Table.
        group: name.
        lines: of table_lines().
        results: results.Results.
    """
    kinds = {}
    for line in lines:
        if line.differences:
            kinds.setdefault(verdict(line), []).append(line.row.title)
    told = "; ".join(f"{kind}: {', '.join(titles)}" for kind, titles in sorted(
        kinds.items(), key=lambda item: VERDICTS.index(item[0])))
    if not told:
        return None
    is_missing = any(table.missing(group, row, results) for row in table.rows)
    sentence = f"{table.groups[group].title}, against {table.rows[table.baseline].title}: {told}" \
        + (" (so far; runs are missing)." if is_missing else ".")
    if any(line.runs and not line.is_searched for line in lines):
        sentence += (" The learning rates marked \"?\" below are still searched: until they are "
                     "found, no row can be judged.")
    return sentence


def counted_faces(lines, results):
    """What the runs shown were tested on, one entry for each set of faces.

    Args:
        lines: {(table, group): [Line]}.
        results: results.Results.
    Returns:
        {name of the table: [(rotation, split, faces)]}.
    """
    counted = {}
    for (table, _), found in lines.items():
        records = [results[name] for line in found for name in line.runs]
        counted.setdefault(table, set()).update(
            (record["rotation"], record.get("split", "test"), record["test_faces"],
             record["digest"]) for record in records)
    return {table: [faces[:3] for faces in sorted(sets)] for table, sets in counted.items()}


def counted_machines(records):
    """{machine and how it was used: [runs, smallest, largest minutes]}."""
    counted = {}
    for record in records:
        key = (f"{record['machine']}, {count_text(record['jobs'], 'run')} side by side, "
               f"{count_text(record['threads'], 'thread')} each")
        number, low, high = counted.get(key, (0, np.inf, 0))
        minutes = record["minutes"]
        counted[key] = number + 1, min(low, minutes), max(high, minutes)
    return counted


def missing_runs(tables, results):
    """{title of a group: runs without a result}, for those that miss some."""
    missing = {}
    for table in tables.values():
        for group, about in table.groups.items():
            count = sum(len(table.missing(group, row, results)) for row in table.rows)
            if count:
                missing[f"{table.name}, {about.title}"] = count
    return missing
