"""Which commit of the code is running."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def current_commit():
    """Short hash of the code's git commit, with '+' if files differ from it; or 'unknown'.

    Files in docs/ do not count: a benchmark writes its results there while it runs.
    """
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, check=True, text=True,
                              capture_output=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":(exclude)docs")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
