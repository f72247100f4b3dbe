"""Compares losses, and what decides more than the loss, on five splits of UTKFace.

    python -m benchmarks.losses --data_dir UTKFace appa-real-release \\
      --dataset utkface appa_real --runs RUNS     # trains, tests, writes the page
    python -m benchmarks.losses                   # writes the page again

Without APPA-REAL the labels from votes are left out. Trains each row of configs/benchmark/rows.yaml
with train.py and measures it with test.py. What the runs gave is kept in docs/benchmark/, and
docs/benchmark.md is written from it after each run, so the table is there early and says what is
missing. A checkpoint takes 57 MB: of those of a run that has its result, only best.pth is kept.
Start the same command again after an interruption: runs that have results are not repeated, and one
that was stopped goes on. Results of several machines can be put together: the lines of results.json
and the files of faces/. KEY VALUE pairs apply to all runs; they cannot change what the runs differ
in.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.page import write_page
from benchmarks.plan import BASE, ROWS, changed_keys, read_tables
from benchmarks.results import Results, face_scores, scores_of
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    count_text,
    parse_with_overrides,
    run_main,
)
from utils.commit import current_commit
from utils.device import device_name
from utils.files import writable_folder
from utils.locks import only_writer
from utils.pipeline import available_cores, stop_on_interrupt

ROOT = Path(__file__).parents[1]
MAX_WORKERS = 8  # loader processes of a run
MAX_JOBS = 8  # runs side by side on a CPU, unless --jobs says otherwise
POLL_SECONDS = 0.2
DIVERGED = "training has diverged"  # in the message of train.py


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__,
                                     formatter_class=HelpFormatter)
    add_data_flags(parser)
    add_device_flag(parser)
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs' files")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs side by side, which share the "
                        "cores; by default one for each core of a CPU, or one on a GPU")
    parser.add_argument("--tables", nargs="+", metavar="NAME",
                        help="the tables to run, of those in --rows; by default all, in turn")
    parser.add_argument("--groups", nargs="+", metavar="NAME",
                        help="the groups of these tables to run; by default all, side by side")
    parser.add_argument("--rows", default=ROWS, metavar="YAML", help="what is compared")
    parser.add_argument("--results", default=ROOT / "docs" / "benchmark", type=Path,
                        metavar="DIR", help="folder of what the runs gave")
    parser.add_argument("--page", default=ROOT / "docs" / "benchmark.md", type=Path,
                        metavar="MD", help="page to write")
    return parse_with_overrides(parser)


def main():
    args = parse_args()
    tables = read_tables(args.rows, args.opts)
    chosen = choose(tables, args)
    if args.page.is_dir():
        raise IsADirectoryError(f"--page '{args.page}' is a folder; name a file in it")
    writable_folder(args.page.parent, "--page")
    if not args.data_dir:
        results = Results(args.results)
        check_same_settings(tables.values(), results)
        write_page(tables, results, args.page)
        print(f"page in {args.page}; to train what is missing, name --data_dir and --runs")
        return 0
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs must be positive, got {args.jobs}")
    if not args.runs:
        raise ValueError("no --runs: name the folder of the runs' files")
    workshop = Workshop.of(args)
    chosen = at_hand(chosen, workshop.sources)
    with ExitStack() as held:
        for folder, flag in ((args.runs, "--runs"), (args.results, "--results")):
            held.enter_context(only_writer(writable_folder(folder, flag),
                                           f"name another folder with {flag}"))
        refuse_runs_left_behind(args.runs)
        return run_all(args, tables, chosen, workshop)


def choose(tables, args):
    """The tables that --tables names, with the groups that --groups names.

    Raises:
        ValueError: --rows has no such table, or these tables no such group.
    """
    refuse_unknown(args.tables, tables, f"--tables: {args.rows}")
    chosen = [tables[name] for name in args.tables or tables]
    if args.groups:
        known = list(dict.fromkeys(group for table in chosen for group in table.groups))
        refuse_unknown(args.groups, known, f"--groups: {', '.join(table.name for table in chosen)}")
        chosen = [table.only(args.groups) for table in chosen]
    return chosen


def at_hand(tables, sources):
    """Those of the tables whose data set is among the sources; the others are named.

    Args:
        tables: list of plan.Table.
        sources: list of lists.Source.
    Raises:
        ValueError: none is left, or a table takes any data set and there are several.
        FileNotFoundError: a data set has no split file of a rotation.
    """
    from lists import find_protocols

    found, given = [], ", ".join(source.dataset for source in sources)
    for table in tables:
        if table.dataset is None and len(sources) > 1:
            raise ValueError(f"'{table.name}' takes one data set, not {given}; choose one with "
                             "--dataset")
        source = source_of(table.dataset, sources)
        if source is None:
            print(f"left out: '{table.name}', which is of the data set {table.dataset}, not "
                  f"{given}")
        else:
            find_protocols([source], table.protocols)
            found.append(table)
    if not found:
        raise ValueError(f"no table is of the data set {given}; name others with --data_dir and "
                         "--dataset")
    return found


def source_of(dataset, sources):
    """The first of the sources that is of a data set, None for any; None if there is none."""
    return next((source for source in sources if dataset in (None, source.dataset)), None)


def refuse_unknown(names, known, where):
    """Raise a ValueError that begins with where, if one of the names (or None) is not known."""
    for name in names or ():
        if name not in known:
            raise ValueError(f"{where} has no '{name}', only {', '.join(known)}")


def refuse_runs_left_behind(folder):
    """Refuse to start beside runs that go on since an earlier start of the script was killed.

    A start that is killed (SIGKILL, no memory) cannot stop its runs, which keep their folders.

    Args:
        folder: path under which all runs lie; this process holds it.
    Raises:
        ValueError: a run's folder is held; names the process.
    """
    for lock in sorted(Path(folder).glob("*/.lock")):
        with only_writer(lock.parent, "a start of this script that was killed has left it running; "
                         "wait until it has ended, or end it with kill and its number, which saves "
                         "where it stands, then start the same command again"):
            pass


def run_all(args, tables, chosen, workshop):
    """Train and test all runs of the chosen tables that have no result yet.

    Returns:
        Exit code: 0 at the end, 130 after an interruption.
    """
    results = Results(args.results)
    check_same_settings(tables.values(), results)
    write_page(tables, results, args.page)  # a missing file is named before hours of training
    active, finished = {}, 0  # {name of the run: Job}
    bar = tqdm(total=sum(table.count_epochs(results) for table in chosen), unit="epoch",
               disable=None)
    with stop_on_interrupt() as should_stop:
        try:
            while not should_stop():
                start_more(chosen, results, active, workshop)
                if not active:
                    break
                time.sleep(POLL_SECONDS)
                for name, job in list(active.items()):
                    bar.update(job.new_epochs())
                    if job.is_over():
                        del active[name]
                        finish(job, results, workshop, tables[job.run.table])
                        finished += 1
                        write_page(tables, results, args.page)
                        # A search may go on to other learning rates than those expected.
                        bar.total = bar.n + sum(table.count_epochs(results) for table in chosen) \
                            - sum(other.epochs_seen for other in active.values())
        finally:
            for job in active.values():
                job.stop()
            for job in active.values():
                job.process.wait()
            bar.close()
    if should_stop():
        print(f"interrupted: {finished} runs finished, {len(active)} saved where they stand; go on "
              "with the same command")
        return 130
    write_page(tables, results, args.page)
    print(f"done: page in {args.page}")
    return 0


def start_more(chosen, results, active, workshop):
    """Start runs until workshop.jobs of them are active, or none is left that can start."""
    waiting = (run for table in chosen for run in table.to_do(results) if run.name not in active)
    while len(active) < workshop.jobs and (run := next(waiting, None)):
        active[run.name] = workshop.start(run)


def finish(job, results, workshop, table):
    """Keep the results of a run that has ended, and remove files that nothing needs any more.

    Args:
        job: Job that is over.
        results: results.Results.
        workshop: Workshop.
        table: plan.Table of the run.
    Raises:
        ValueError: it failed.
    """
    name, error = job.run.name, job.error()
    if error and DIVERGED not in error:
        raise ValueError(f"the run {name} failed: {error} (all of it: {job.log}); start the same "
                         "command again once that is fixed")
    if error:
        results.add(name, workshop.record(job) | {"error": error})
        told = error
    else:
        record, faces = workshop.measure(job)
        results.add(name, record, faces)
        for run in table.beaten(job.run.group, job.run.row, results):
            results.drop_faces(run.name)
        told = f"test mae {record['test']['mae']:.3f}, {record['minutes']:.1f} minutes"
    for path in (job.folder / "last.pth", *job.folder.glob("epoch*.pth")):
        path.unlink(missing_ok=True)
    tqdm.write(f"{name}: {told}")  # above the progress bar
    sys.stdout.flush()


def check_same_settings(tables, results):
    """Refuse results of runs that were made with other settings than the tables ask for.

    Raises:
        ValueError: names the first run and key that differ.
    """
    for table in tables:
        for cell in table.cells:
            for run in (table.run(*cell, *repeat, rate) for rate in table.rates
                        for repeat in table.repeats(cell[1])):
                if run.name in results:
                    refuse_other_keys(results[run.name]["config"], run, results.path,
                                      "give the same KEY VALUE pairs and --rows, or name another "
                                      "folder with --results")


def refuse_other_keys(before, run, place, way_out):
    """Raise a ValueError if the {key: value} of an earlier run are not those of the run."""
    for key in sorted({*before, *run.keys}):
        if before.get(key) != run.keys.get(key):
            raise ValueError(f"{place} has '{run.name}' with {key} "
                             f"{before.get(key, 'by default')}, not "
                             f"{run.keys.get(key, 'by default')}; {way_out}")


@dataclass
class Job:
    """A run in processes of its own: train.py, then test.py.

    run: plan.Run.
    folder: Path of its files.
    commands: lists of words that are still to be started.
    environment: {name: text} for the processes.
    commit: hash of the code that they run, from current_commit().
    """

    run: object
    folder: Path
    commands: list
    environment: dict
    commit: str
    process: subprocess.Popen | None = None
    epochs_seen: int = 0

    def __post_init__(self):
        self.log = writable_folder(self.folder, "--runs") / "output.txt"
        self.log.write_text("", encoding="utf-8")  # an error of an earlier start is not this one's
        self._start_next()

    def _start_next(self):
        with self.log.open("a", encoding="utf-8") as log:
            # In a session of its own: Ctrl-C reaches the script alone, which tells the runs.
            self.process = subprocess.Popen(
                self.commands.pop(0), env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True)

    def is_over(self):
        """Whether it has ended, well or not; starts the test when the training has ended well."""
        if self.process.poll() is None:
            return False
        if self.process.returncode or not self.commands:
            return True
        self._start_next()
        return False

    def error(self):
        """The error line of a run that is over, or None if it ended well."""
        if not self.process.returncode:
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else f"exit code {self.process.returncode}"

    def stop(self):
        """Ask it to end; a training saves where it stands."""
        if self.process.poll() is None:
            self.process.terminate()

    def epochs(self):
        """The records of log.jsonl."""
        path = self.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def new_epochs(self):
        """How many epochs have ended since the last call."""
        path = self.folder / "log.jsonl"
        count = path.read_bytes().count(b"\n") if path.is_file() else 0
        new, self.epochs_seen = max(count - self.epochs_seen, 0), count
        return new


@dataclass(frozen=True)
class Workshop:
    """Where and how runs are made on this machine.

    words: flags of device and cache, for both scripts.
    runs: folder of the runs.
    jobs: runs side by side.
    threads: CPU threads of each.
    device: name of the device.
    sources: list of lists.Source, the data sets at hand.
    """

    words: list
    runs: Path
    jobs: int
    threads: int
    device: str
    sources: list

    @classmethod
    def of(cls, args):
        """From the command line.

        Raises:
            ValueError, FileNotFoundError: no such data.
        """
        from lists import pair_folders

        sources = [
            source._replace(data_dir=Path(source.data_dir), list_dir=Path(source.list_dir))
            for source in pair_folders(args.data_dir, args.dataset, args.list_dir)]
        device, cores = device_name(args.device), available_cores()
        jobs = args.jobs or (min(cores, MAX_JOBS) if device == "cpu" else 1)
        words = ["--device", args.device]
        if args.cache_dir:
            words += ["--cache_dir", args.cache_dir]
        return cls(words, Path(args.runs), jobs, max(1, cores // jobs), device, sources)

    def start(self, run):
        """Start or continue a run.

        Returns:
            Job.
        Raises:
            ValueError: its folder is of a run with other settings.
        """
        folder = self.runs / run.name
        flags = self._data(run)
        workers = min(self.threads - 1, MAX_WORKERS)
        in_train, in_test = ["TRAIN.WORKERS", workers], ["TEST.WORKERS", workers]
        if (folder / "last.pth").is_file():
            refuse_other_keys(read_keys(folder), run, self.runs, "name another folder with --runs")
            how = ["--resume", folder / "last.pth", *in_train, *in_test]
        else:
            how = ["--cfg", BASE, *in_train, *in_test, *run.opts]
        python = [sys.executable]
        train = [*python, ROOT / "train.py", *flags, "--checkpoint", folder, *how]
        test = [*python, ROOT / "test.py", *flags, "--resume", folder / "best.pth", "--output",
                folder / "test.csv", "--split", self._tested_split(run), *in_test]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads),
                                    "OMP_WAIT_POLICY": "passive"}
        return Job(run, folder, [list(map(str, words)) for words in (train, test)], environment,
                   current_commit())

    def _data(self, run):
        source = source_of(run.dataset, self.sources)
        if not run.aligned:
            from benchmarks.upright import upright_source
            source = upright_source(source, self.runs / "upright_lists")
        protocol = ["--protocol", run.protocol] if run.protocol else []
        return [*self.words, "--dataset", source.dataset, "--data_dir", source.data_dir,
                "--list_dir", source.list_dir, *protocol]

    def _tested_split(self, run):
        """test, or valid where the data set has no test part at hand."""
        from lists import splits_of
        splits = splits_of(source_of(run.dataset, self.sources), run.protocol)
        return "test" if "test" in splits else "valid"

    def measure(self, job):
        """(record, faces) of a run that ended well, see benchmarks.results."""
        from evaluation.predictions import read_predictions

        predictions = read_predictions(job.folder / "test.csv")
        faces, digest = face_scores(predictions)
        best = min(job.epochs(), key=lambda record: record["valid"]["mae"])
        return self.record(job) | {
            "valid_mae": round(best["valid"]["mae"], 4), "best_epoch": best["epoch"],
            "test": scores_of(predictions), "test_faces": len(predictions.faces),
            "split": self._tested_split(job.run),
            "digest": digest}, faces

    def record(self, job):
        """What is known of a run, whether it ended well or diverged."""
        return {"config": read_keys(job.folder), "rotation": job.run.rotation,
                "minutes": round(sum(record["seconds"] for record in job.epochs()) / 60, 2),
                "jobs": self.jobs, "threads": self.threads,
                "machine": machine_name(self.device), "commit": job.commit}


def read_keys(folder):
    """{key: value} that are not the defaults, of the config that a run was made with."""
    from defaults import parse_cfg
    return changed_keys(parse_cfg((folder / "config.yaml").read_text(encoding="utf-8")))


def machine_name(device):
    """The processor with its number of cores, or the GPU, in words."""
    if device != "cpu":
        import torch
        return torch.cuda.get_device_name() if device.startswith("cuda") else device
    info, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.is_file():
        name = next((line.partition(":")[2].strip() for line in info.read_text().splitlines()
                     if line.startswith("model name")), name)
    return f"{name}, {count_text(available_cores(), 'core')}"


if __name__ == "__main__":
    run_main(main)
