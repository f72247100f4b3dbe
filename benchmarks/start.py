"""How long the first age takes, and how much memory: in fresh processes, as a user meets it.

    python -m benchmarks.start
    python -m benchmarks.start --root EARLIER_CHECKOUT     another version beside this one

Each process imports the library, loads the default model and estimates one photo.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from utils.cli import HelpFormatter, count_text, run_main
from utils.pipeline import available_cores

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "misc" / "samples" / "grace_hopper.jpg"
FIRST_AGE = """
import resource, sys, time
from predictor import AgeEstimator
[face] = AgeEstimator(device="cpu")(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, face.age)
"""
COUNTS = ("wall s", "CPU s", "peak MB")


def first_age(root):
    """(wall seconds, CPU seconds, peak megabytes, age) of one fresh process."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", FIRST_AGE, str(PHOTO)], cwd=root, text=True,
                          capture_output=True)
    wall = os.times().elapsed - before.elapsed
    if done.returncode:
        raise OSError(f"'{root}': {done.stderr.strip().splitlines()[-1]}")
    return (wall, *map(float, done.stdout.split()))


def help_seconds(root):
    """(wall seconds, CPU seconds) of `demo.py -h`."""
    before = os.times()
    subprocess.run([sys.executable, "demo.py", "-h"], cwd=root, stdout=subprocess.DEVNULL,
                   check=True)
    after = os.times()
    return (after.elapsed - before.elapsed,
            after.children_user - before.children_user
            + after.children_system - before.children_system)


def spread(values):
    """Median, smallest and largest as text."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("--root", type=Path, action="append", default=[], metavar="DIR",
                        help="checkout of another version, measured in turn with this one")
    parser.add_argument("--runs", type=int, default=5, help="processes of each")
    args = parser.parse_args()
    if args.runs < 1:
        raise ValueError(f"--runs must be positive, got {args.runs}")
    roots = [ROOT, *args.root]
    for root in roots:
        if not (root / "demo.py").is_file():
            raise FileNotFoundError(f"--root '{root}' is not a checkout: it has no demo.py")
    for root in roots:
        first_age(root)  # fills the disk's cache
    runs = {root: [] for root in roots}
    helps = {root: [] for root in roots}
    for _ in range(args.runs):
        for root in roots:
            runs[root].append(first_age(root))
            helps[root].append(help_seconds(root))
    print(f"median of {args.runs} (range), {count_text(available_cores(), 'core')}")
    for root in roots:
        columns = list(zip(*runs[root], strict=True))
        print(f"{root}: first age " + ", ".join(
            f"{name} {spread(values)}" for name, values in zip(COUNTS, columns[:3], strict=True))
            + f"; demo.py -h wall s {spread([wall for wall, _ in helps[root]])}, "
              f"CPU s {spread([cpu for _, cpu in helps[root]])}; age {columns[3][0]:.2f}")


if __name__ == "__main__":
    run_main(main)
