"""Which runs the tables of docs/benchmark.md need, and in which order: configs/benchmark/."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import yaml

from defaults import OF_MACHINE, known_keys, load_cfg, value_of

CONFIGS = Path(__file__).parents[1] / "configs" / "benchmark"
BASE, ROWS = CONFIGS / "base.yaml", CONFIGS / "rows.yaml"
TABLES = ("losses", "factors", "votes")  # that the page has a place for
OFFICIAL = "official"  # in the place of a protocol's name: the split of the lists themselves


class Group(NamedTuple):
    """Rows that are compared with one another.

    title: as the page shows it.
    keys: {key of the config: value} of all its rows.
    """

    title: str
    keys: dict


class Row(NamedTuple):
    """One line of a table.

    title: as the page shows it.
    keys: {key of the config: value}, over those of the group.
    published: MAE that others report, or None.
    seeds: how many of the table's seeds it needs; None: all.
    aligned: False for faces that are cut without rotating the photo.
    """

    title: str
    keys: dict
    published: float | None = None
    seeds: int | None = None
    aligned: bool = True


@dataclass(frozen=True)
class Run:
    """One training and its test.

    table, group, row: names.
    dataset: see Table.
    rotation: name of the protocol, a split file, or OFFICIAL.
    seed, rate: TRAIN.SEED and TRAIN.LR.
    opts: flat KEY VALUE pairs over base.yaml.
    aligned: see Row.
    """

    table: str
    group: str
    row: str
    dataset: str | None
    rotation: str
    seed: int
    rate: float
    opts: tuple
    aligned: bool

    @property
    def name(self):
        return (f"{self.table}-{self.group}-{self.row}-{self.rotation}-seed{self.seed}-"
                f"lr{self.rate:g}")

    @cached_property
    def cfg(self):
        return load_cfg(BASE, self.opts)

    @property
    def protocol(self):
        """Name of the protocol; None: the split of the lists."""
        return protocol_of(self.rotation)

    @property
    def keys(self):
        """{key: value} of the config that are not the defaults."""
        return changed_keys(self.cfg)


def protocol_of(rotation):
    """Name of a rotation's protocol; None: the split of the lists."""
    return None if rotation == OFFICIAL else rotation


def changed_keys(cfg):
    """{key: value} of a config that differ from the defaults and can change a result."""
    usual = load_cfg()
    return {key: value_of(cfg, key) for key in known_keys()
            if value_of(cfg, key) != value_of(usual, key) and key not in OF_MACHINE}


@dataclass(frozen=True)
class Table:
    """A table of the page.

    name: key in rows.yaml.
    baseline: name of the row that the others are compared with.
    rates: learning rates that can be tried, in ascending order; one means no search.
    rotations, seeds: what is repeated; rotations are protocols of the data set, or OFFICIAL.
    dataset: name of the data set; None: the only one that is at hand.
    groups, rows: {name: Group}, {name: Row}.
    opts: flat KEY VALUE pairs of the command line, for every run; none of varied_keys.
    """

    name: str
    baseline: str
    rates: tuple
    rotations: tuple
    seeds: tuple
    groups: dict
    rows: dict
    dataset: str | None = None
    opts: tuple = ()

    def only(self, groups):
        """The same table without all groups but these names; it may be left with none."""
        return replace(self, groups={name: group for name, group in self.groups.items()
                                     if name in groups})

    @property
    def protocols(self):
        """The rotations that are protocols of the data set."""
        return [rotation for rotation in self.rotations if protocol_of(rotation)]

    @property
    def cells(self):
        """(group, row) names in the order of the page."""
        return [(group, row) for group in self.groups for row in self.rows]

    @property
    def varied_keys(self):
        """Keys of the config that the runs may differ in, which the page states of them."""
        return {"TRAIN.LR", "TRAIN.SEED"}.union(
            *(part.keys for part in (*self.groups.values(), *self.rows.values())))

    def repeats(self, row):
        """[(rotation, seed)] of a row; the learning rate is searched on the first."""
        seeds = self.seeds[:self.rows[row].seeds]
        return [(rotation, seed) for seed in seeds for rotation in self.rotations]

    def run(self, group, row, rotation, seed, rate):
        keys = self.groups[group].keys | self.rows[row].keys | {
            "TRAIN.LR": rate, "TRAIN.SEED": seed}
        opts = [str(word) for pair in keys.items() for word in pair]
        return Run(self.name, group, row, self.dataset, rotation, seed, rate, (*opts, *self.opts),
                   self.rows[row].aligned)

    @property
    def first_rate(self):
        """The learning rate in the middle, which every search begins with."""
        return self.rates[len(self.rates) // 2]

    def search(self, group, row, results):
        """The runs that the learning rate is chosen by, as far as the results tell.

        It begins with first_rate. The best rate so far gets its two neighbours tried, until both
        are worse. A run that diverged is worse than any other, and of two the larger rate.

        Args:
            results: {name of a run: record}.
        Returns:
            list of Run in the order in which they are tried; those without a result come next.
        """
        runs = [self.run(group, row, *self.repeats(row)[0], rate) for rate in self.rates]
        maes = [results.get(run.name, {}).get("valid_mae", float("inf")) for run in runs]
        tried = [self.rates.index(self.first_rate)]
        while True:
            best = min(tried, key=lambda number: (maes[number], number))
            new = [number for number in (best - 1, best + 1)
                   if number in range(len(runs)) and number not in tried]
            tried += new
            if not new or any(runs[number].name not in results for number in new):
                return [runs[number] for number in tried]

    def best_rate(self, group, row, results):
        """The learning rate of the smallest MAE on valid so far; None if there is none yet."""
        found = {run.rate: results[run.name]["valid_mae"]
                 for run in self.search(group, row, results)
                 if "valid_mae" in results.get(run.name, {})}
        return min(found, key=found.get) if found else None

    def is_searched(self, group, row, results):
        """Whether the learning rate of a row is known for good."""
        return all(run.name in results for run in self.search(group, row, results))

    def beaten(self, group, row, results):
        """The runs of a row whose learning rate is not the best so far."""
        best = self.best_rate(group, row, results)
        runs = [self.run(group, row, *repeat, rate) for rate in self.rates if rate != best
                for repeat in self.repeats(row)]
        return [run for run in runs if run.name in results]

    def to_do(self, results):
        """Yield the runs without a result that can start now, the most telling first.

        All rows are run once, with the first learning rate; then others are tried; then each
        rotation follows, and each seed. A row waits until its learning rate is known.

        Args:
            results: {name of a run: record}.
        """
        searches = [self.search(*cell, results) for cell in self.cells]
        yield from (run for run in chain(*zip_longest(*searches))
                    if run and run.name not in results)
        for rotation, seed in [(rotation, seed) for seed in self.seeds
                               for rotation in self.rotations][1:]:
            for group, row in self.cells:
                if (rotation, seed) in self.repeats(row) and self.is_searched(group, row, results):
                    rate = self.best_rate(group, row, results)
                    run = None if rate is None else self.run(group, row, rotation, seed, rate)
                    if run and run.name not in results:
                        yield run

    def missing(self, group, row, results):
        """The runs of a row that have no result yet, also those that must wait.

        Until a learning rate has been tried, the first stands for it. The search may turn out to
        need more than these. If all its runs have diverged, no others follow.
        """
        runs, rate = self.search(group, row, results), self.best_rate(group, row, results)
        if rate is not None or not self.is_searched(group, row, results):
            runs += [self.run(group, row, *repeat, rate or self.first_rate)
                     for repeat in self.repeats(row)[1:]]
        return [run for run in runs if run.name not in results]

    def count_epochs(self, results):
        """Epochs of all runs that have no result yet."""
        return sum(self.search(*cell, results)[0].cfg.TRAIN.EPOCHS
                   * len(self.missing(*cell, results)) for cell in self.cells)


def read_tables(path=ROWS, opts=()):
    """{name: Table} of a file such as rows.yaml; opts: see Table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file, a row's keys are refused by load_cfg, or opts change what
            the runs differ in, so that their names and titles would not be true.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"table '{path}' not found; the benchmark's is {ROWS}")
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        tables = {name: Table(
            name, entry["baseline"],
            tuple(sorted(map(float, entry["learning_rates"]))),  # YAML takes 1e-4 for text
            tuple(entry["rotations"]), tuple(entry["seeds"]),
            {key: Group(**group) for key, group in entry["groups"].items()},
            {key: Row(**row) for key, row in entry["rows"].items()}, entry.get("dataset"),
            tuple(opts))
            for name, entry in tree.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' does not describe tables as {ROWS} does: "
                         f"{' '.join(str(error).split())}") from error
    if not tables:
        raise ValueError(f"'{path}' has no tables")
    for table in tables.values():
        if table.name not in TABLES:
            raise ValueError(f"'{path}': the page has no place for a table '{table.name}', only "
                             f"for {', '.join(TABLES)}")
        varied = sorted(table.varied_keys & {*opts[::2]})
        if varied:
            raise ValueError(f"the runs of '{table.name}' differ in {varied[0]}, so it cannot be "
                             f"given for all of them; change it in a copy of '{path}' and name "
                             "that with --rows")
        empty = [name for name, values in (
            ("learning_rates", table.rates), ("rotations", table.rotations),
            ("seeds", table.seeds), ("groups", table.groups)) if not values]
        if empty:
            raise ValueError(f"'{path}': '{table.name}' has no {empty[0]}")
        if table.baseline not in table.rows:
            raise ValueError(f"'{path}': the baseline '{table.baseline}' of '{table.name}' is not "
                             f"one of its rows {', '.join(table.rows)}")
        for name, row in table.rows.items():
            for key, value, is_right in (
                    ("seeds", row.seeds, isinstance(row.seeds, int)),
                    ("published", row.published, isinstance(row.published, int | float))):
                if value is not None and not (is_right and value > 0):
                    raise ValueError(f"'{path}': {key} of the row '{name}' of '{table.name}' must "
                                     f"be a {'whole ' * (key == 'seeds')}number above 0, got "
                                     f"'{value}'")
        for cell in table.cells:
            _ = table.search(*cell, {})[0].cfg  # refuses unknown keys before anything is trained
    return tables
