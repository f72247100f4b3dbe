"""benchmarks.start: how long the first age takes."""

import subprocess
import sys

import pytest
from scripts import ROOT, refusal


def start(*words):
    return subprocess.run([sys.executable, "-m", "benchmarks.start", *map(str, words)], cwd=ROOT,
                          capture_output=True, text=True, check=False)


def test_the_first_age_is_timed_in_fresh_processes():
    done = start("--runs", 1)
    assert done.returncode == 0, done.stderr
    heading, line = done.stdout.splitlines()
    assert heading.startswith("median of 1 (range), ")
    assert line.startswith(f"{ROOT}: first age wall s ")
    wall = float(line.partition("wall s ")[2].split()[0])
    peak = float(line.partition("peak MB ")[2].split()[0])
    age = float(line.rpartition("age ")[2])
    assert 0.1 < wall < 60 and 50 < peak < 2000 and 76 < age < 96  # she is 77


@pytest.mark.parametrize(("words", "named"), [
    (["--runs", 0], "--runs must be positive, got 0"),
    (["--root", ROOT / "docs"], "is not a checkout: it has no demo.py")])
def test_what_cannot_be_measured_is_refused(words, named):
    assert named in refusal(start(*words))
