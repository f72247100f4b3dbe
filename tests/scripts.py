"""How the tests run train.py and test.py, and read what they leave."""

import io
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from faces import TINY, write_dataset

ROOT = Path(__file__).parent.parent
AGES = [5, 15, 25, 35, 45, 55, 65, 75]
STEADY = [*TINY, "TRAIN.DETERMINISTIC", "True", "TRAIN.EMA_DECAY", "0.9",
          "MODEL.DROPOUT", "0.2", "TRAIN.OPT", "adamw", "TRAIN.SCHEDULE", "cosine"]
TWO_PROCESSES = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def draw_ages(folder):
    """Draw a data set of eight faces, with the same list for train, valid and test."""
    write_dataset(folder, AGES, splits=("train", "valid", "test"),
                  columns={"gender": ["male", "female"] * 4})
    return folder


def script(name, *words, check=True):
    """Run a script in this process, which saves the seconds that importing torch takes."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [str(ROOT / name), *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
        torch.use_deterministic_algorithms(False)
    done = subprocess.CompletedProcess(name, code, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def train(folder, run, *words, check=True):
    """Run train.py on the data in `folder`, with the run's files in `run`."""
    return script("train.py", "--data_dir", folder, "--checkpoint", run, "--cache_dir",
                  run.parent / "cache", *words, check=check)


def start_training(folder, run, *words, launcher=(), **options):
    """Like train, in a process of its own; launcher: further words for Python before train.py."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), "--data_dir", str(folder),
         "--checkpoint", str(run), "--cache_dir", str(run.parent / "cache"), *words],
        cwd=ROOT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def train_in_two_processes(folder, run, *words):
    """Like train, under torchrun; returns what was printed."""
    process = start_training(folder, run, *words, launcher=TWO_PROCESSES)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def start_on_two_machines(folder, run, *words, edit=None):
    """Start one training as on two machines that do not see each other's files.

    The second machine has a copy of the data. Its folder of the run should stay empty.

    Args:
        folder, run, words: as for train().
        edit: function (folder) that changes the copy, or None.
    Returns:
        list of two torchrun processes; the main process of the training belongs to the first.
    """
    other = run.parent / f"other machine {run.name}"
    shutil.copytree(folder, other / "data")
    if edit:
        edit(other / "data")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
             "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}",
             "--rdzv_id", run.name]
    # torchrun numbers the machines by their addresses in alphabetical order.
    return [start_training(data, place, *words, launcher=[*agent, "--local_addr", address])
            for data, place, address in ((folder, run, "127.0.0.1"),
                                         (other / "data", other / "run", "localhost"))]


def train_on_two_machines(folder, run, *words):
    """Like train, on two machines as in start_on_two_machines; returns what was printed."""
    processes = start_on_two_machines(folder, run, *words)
    printed = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed[1][0] == ""
    assert not (run.parent / f"other machine {run.name}" / "run").exists()
    return printed[0][0]


def weights(path):
    """The contents of a checkpoint file."""
    return torch.load(path, weights_only=True)


def read_log(run):
    """The records of a run's log.jsonl."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def refusal(done):
    """The one error line of a script that has refused its input."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def interrupt_after(process, run, epochs, interrupt=lambda process: process.send_signal(
        signal.SIGINT)):
    """Interrupt the process when the log has these epochs; returns what was printed."""
    deadline = time.time() + 300
    log = run / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= epochs):
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    interrupt(process)
    return process.communicate(timeout=300)[0]
