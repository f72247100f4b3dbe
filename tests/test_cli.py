"""Overrides among the flags, errors in one line, and output that never ends a script."""

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faces import TINY, write_dataset

from utils.cli import (
    LOADER_PROBLEM,
    MEMORY_ADVICE,
    parse_with_overrides,
    robust_output,
    run_main,
)

ROOT = Path(__file__).parent.parent
SCRIPTS = [path for folder in ("", "preprocess", "training", "evaluation", "benchmarks")
           for path in sorted((ROOT / folder).glob("*.py"))
           if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def parser():
    made = argparse.ArgumentParser()
    made.add_argument("--data_dir", nargs="+")
    made.add_argument("--resume")
    return made


# ---- flags and overrides -------------------------------------------------------------------

@pytest.mark.parametrize("words", [
    ["--data_dir", "a", "b", "--resume", "c.pth", "TRAIN.LR", "0.1"],
    ["--resume", "c.pth", "TRAIN.LR", "0.1", "--data_dir", "a", "b"],
    ["TRAIN.LR", "0.1", "--data_dir", "a", "b", "--resume", "c.pth"],
    ["--resume", "c.pth", "--data_dir", "a", "b", "TRAIN.LR", "0.1"],
])
def test_flags_work_on_either_side_of_the_overrides(words):
    args = parse_with_overrides(parser(), words)
    assert (args.data_dir, args.resume, args.opts) == (["a", "b"], "c.pth", ["TRAIN.LR", "0.1"])


def test_a_key_that_does_not_exist_in_a_section_that_does_is_an_override():
    args = parse_with_overrides(parser(), ["--data_dir", "a", "TRAIN.LRR", "0.1"])
    assert (args.data_dir, args.opts) == (["a"], ["TRAIN.LRR", "0.1"])  # load_cfg refuses it


def test_a_file_in_capitals_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("MODEL.PTH").touch()  # MODEL is a section too
    args = parse_with_overrides(parser(), ["--resume", "CLIP.MP4", "--data_dir", "OUT.CSV",
                                           "MODEL.PTH", "TRAIN.LR", "0.1"])
    assert (args.resume, args.data_dir) == ("CLIP.MP4", ["OUT.CSV", "MODEL.PTH"])
    assert args.opts == ["TRAIN.LR", "0.1"]


@pytest.mark.parametrize(("word", "named"), [
    ("TRAIN.LR=0.1", r"is written TRAIN\.LR 0\.1"), ("train.lr", r"is written TRAIN\.LR VALUE"),
    ("train.lr=3", r"is written TRAIN\.LR 3"), ("TRIAN.LR", r"did you mean TRAIN\.LR\?")])
def test_another_spelling_of_a_key_is_no_value_of_the_flag_before(word, named):
    with pytest.raises(ValueError, match=f"'{word}'.* {named}$"):
        parse_with_overrides(parser(), ["--data_dir", "a", word])


def test_a_file_named_like_a_misspelt_key_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("train.lr", "TRIAN.LR"):
        Path(word).touch()
        assert parse_with_overrides(parser(), ["--resume", word]).resume == word


@pytest.mark.parametrize(("words", "named"), [
    (["TRAIN.LR", "0.1", "--rezume", "c"], "--rezume"),
    (["TRAIN.LR", "--resume", "c"], "TRAIN.LR"),
    (["TRAIN.LR"], "TRAIN.LR"),
])
def test_misspelt_flags_and_missing_values_are_refused_by_name(words, named, capsys):
    with pytest.raises(SystemExit) as raised:
        parse_with_overrides(parser(), words)
    assert raised.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(("words", "hint"), [
    (["."], "unrecognized arguments: .; write --data_dir ."),
    (["--resume", "a.pth", "b.pth"], "unrecognized arguments: b.pth; write --resume b.pth"),
    (["0.1"], "0.1; each word follows a flag (--help lists them), or is a pair such as TRAIN.LR"),
])
def test_a_word_without_a_flag_is_told_which_one_is_missing(words, hint, capsys):
    with pytest.raises(SystemExit):
        parse_with_overrides(parser(), words)
    assert hint in capsys.readouterr().err


# ---- errors and warnings -------------------------------------------------------------------

def open_missing():
    Path("no", "such.file").read_text()


def import_missing():
    import no_such_package_anywhere  # noqa: F401


def exhaust_memory():
    bytearray(1 << 62)


def exhaust_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee more")


def exhaust_memory_in_torch():
    torch.empty(1 << 50, dtype=torch.uint8)


def exhaust_mps():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 5.43 GB).")


def lose_a_worker():
    raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1.")


def lose_the_pipe_to_a_worker():
    raise ConnectionResetError(104, "Connection reset by peer")


def open_too_many():
    raise RuntimeError("received 0 items of ancdata: Too many open files")


def raise_in_two_lines():
    raise ValueError("one thing\n  and another")


def raise_nothing():
    raise OSError


@pytest.mark.parametrize(("main", "line"), [
    (open_missing, "error: 'no/such.file': No such file or directory"),
    (import_missing, "error: No module named 'no_such_package_anywhere'; install it with: pip "
                     "install -r requirements.txt"),
    (exhaust_memory, "error: not enough memory (of this process)"),
    (exhaust_gpu, f"error: CUDA out of memory; {MEMORY_ADVICE}"),
    (exhaust_memory_in_torch, f"error: not enough memory; {MEMORY_ADVICE}"),
    (exhaust_mps, f"error: MPS out of memory; {MEMORY_ADVICE}"),
    (lose_a_worker, f"error: {LOADER_PROBLEM}"),
    (lose_the_pipe_to_a_worker, f"error: {LOADER_PROBLEM}"),
    (open_too_many, f"error: {LOADER_PROBLEM}"),
    (raise_in_two_lines, "error: one thing and another"),
    (raise_nothing, "error: OSError"),
])
def test_bad_input_ends_in_one_line(main, line, capsys):
    with pytest.raises(SystemExit) as raised:
        run_main(main)
    assert raised.value.code == 2
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_fault_in_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="size"):
        run_main(lambda: torch.zeros(2) @ torch.zeros(3))


@pytest.mark.parametrize(("main", "code"), [(lambda: 0, 0), (lambda: 130, 130),
                                            (lambda: None, None)])
def test_the_exit_code_is_the_one_of_main(main, code):
    with pytest.raises(SystemExit) as raised:
        run_main(main)
    assert raised.value.code == code


def test_ctrl_c_ends_in_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        run_main(main)
    assert raised.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(capsys):
    # In a process of its own: pytest collects warnings before they are printed.
    done = subprocess.run([sys.executable, "-c", "import warnings\n"
                           "from utils.cli import run_main\n"
                           "run_main(lambda: warnings.warn('one thing\\n  and another'))"],
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "",
                                                           "warning: one thing and another\n")


# ---- output --------------------------------------------------------------------------------

@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_runs_its_main_by_run_main(script):
    assert "run_main(main)" in script.read_text(encoding="utf-8").split("__main__")[1]


def test_characters_that_the_output_cannot_encode_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with robust_output():
        print("années 人 \udcff")
    assert written.getvalue().decode("cp1252").split() == ["années", "\\u4eba", "\\udcff"]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("buffering", [1, -1])
def test_output_that_nobody_reads_is_dropped(name, buffering, monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering) as stream:
        monkeypatch.setattr(sys, name, stream)
        with robust_output():
            print("read", file=getattr(sys, name), flush=True)
            assert os.read(reader, 100) == b"read\n"
            os.close(reader)
            for _ in range(3):  # more than any buffer holds
                print("x" * 100_000, file=getattr(sys, name))
        stream.write("also when the interpreter ends")


def test_other_failures_of_the_output_are_told(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left"), robust_output():
            print("lost", flush=True)
        monkeypatch.undo()
        full.buffer.raw.close()


def test_a_training_goes_on_without_a_reader_and_with_any_folder_name(tmp_path):
    write_dataset(tmp_path, [10, 40, 70, 20])
    command = [sys.executable, "train.py", "--data_dir", tmp_path, "--device", "cpu",
               "--checkpoint", tmp_path / "人", "--cache_dir", tmp_path / "cache", *TINY,
               "TRAIN.EPOCHS", "2"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert run.stdout.readline()
    run.stdout.close()  # as `| head -1` does
    errors = run.stderr.read().decode("cp1252")
    assert run.wait() == 0, errors
    assert "Broken pipe" not in errors and "Traceback" not in errors
    assert len((tmp_path / "人" / "log.jsonl").read_text().splitlines()) == 2
