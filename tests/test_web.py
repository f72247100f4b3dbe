"""web/: the tests that need no browser and no npm package; `make web-test` runs the others too."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIN_NODE = 20


def node_version():
    """The major version of Node, 0 where there is none."""
    if not shutil.which("node"):
        return 0
    printed = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return int(re.match(r"v(\d+)", printed.stdout)[1])


@pytest.mark.skipif(node_version() < MIN_NODE, reason=f"needs Node {MIN_NODE} or newer")
def test_the_modules_of_the_page():
    files = sorted((ROOT / "web" / "test").glob("*.test.js"))
    assert files
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stdout + done.stderr
