"""What all scripts share: their output, their errors, their flags and the config overrides."""

import argparse
import difflib
import errno
import os
import re
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from defaults import known_keys
from utils.download import MODEL_ENDINGS

CONFIG_KEY = re.compile(r"[A-Z]+\.[A-Z0-9_]+")
# Writing fails with these when nobody reads any more: a closed pipe (Windows: EINVAL), a closed
# terminal.
READER_GONE = (errno.EPIPE, errno.EINVAL, errno.EIO)
GPU_MEMORY_ERROR = "OutOfMemoryError"  # of PyTorch, by its name: not every script imports PyTorch
MEMORY_ADVICE = ("choose a smaller TRAIN.BATCH_SIZE (without training: TEST.BATCH_SIZE), a smaller "
                 "MODEL.IMG_SIZE or a smaller network, or use --device cpu")
LOADER_PROBLEM = ("a process that loads faces was killed, or the limit of open files was reached: "
                  "give it more memory (in a container also --shm-size=4g), or set TRAIN.WORKERS 0 "
                  "and TEST.WORKERS 0, which is slower")


def run_main(main):
    """Run a script's main(): bad input and full memory end in one line on stderr and exit code 2.

    Warnings are one line too, without the place in the code. Output never ends a script: what
    its encoding lacks is escaped, and what nobody reads any more is dropped.

    Args:
        main: function () -> exit code.
    Raises:
        SystemExit: 2 after bad input, 130 after Ctrl-C, else with the exit code of main.
    """
    warnings.formatwarning = _in_one_line
    with robust_output():
        try:
            sys.exit(main())
        except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
            print(f"error: {_message(error)}", file=sys.stderr)
            sys.exit(2)
        except RuntimeError as error:
            if not (known := _resource_problem(error)):
                raise
            print(f"error: {known}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)


def _resource_problem(error):
    """What a RuntimeError of PyTorch says of memory and processes, with the way out; or None."""
    message = str(error)
    if type(error).__name__ == GPU_MEMORY_ERROR or "out of memory" in message:
        what = "MPS out of memory" if "MPS" in message else "CUDA out of memory"
        return f"{what}; {MEMORY_ADVICE}"
    if "can't allocate memory" in message:
        return f"not enough memory; {MEMORY_ADVICE}"
    if "DataLoader worker" in message or "Too many open files" in message:
        return LOADER_PROBLEM
    return None


def _message(error):
    message = str(error)
    if isinstance(error, ConnectionError) and error.filename is None:  # to a worker
        return LOADER_PROBLEM
    if message.startswith("Caught "):  # in a loader's worker: torch adds its traceback
        return message.strip().splitlines()[-1].split(": ", 1)[-1]
    if isinstance(error, MemoryError):
        return f"not enough memory ({message or 'of this process'})"
    if isinstance(error, ModuleNotFoundError):
        return f"{message}; install it with: pip install -r requirements.txt"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"  # without the number of the error
    return " ".join(line.strip() for line in message.splitlines()) or type(error).__name__


def _in_one_line(message, category, filename, lineno, line=None, usual=warnings.formatwarning):
    if category is not UserWarning:
        return usual(message, category, filename, lineno, line)
    return f"warning: {' '.join(str(message).split())}\n"


@contextmanager
def robust_output():
    """Context in which nothing that is printed raises an error."""
    with redirect_stdout(_Output(sys.stdout)), redirect_stderr(_Output(sys.stderr)):
        try:
            yield
        finally:
            sys.stdout.flush()  # while errors are still caught
            sys.stderr.flush()


class _Output:
    """A text stream that goes on after its reader is gone, such as `| head -1`."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._unless_gone("write", text)

    def flush(self):
        return self._unless_gone("flush")

    def _unless_gone(self, method, *args):
        try:
            return getattr(self.stream, method)(*args) if self.stream else None
        except OSError as error:
            if error.errno not in READER_GONE:
                raise
        # From here on the system drops the output, also what Python still holds.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        return None


def count_text(n, what):
    """A number of things in words: "1 face", "2,000 faces"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def add_data_flags(parser):
    """The flags that name the faces: --data_dir, --dataset, --list_dir, --cache_dir."""
    parser.add_argument("--data_dir", nargs="+", metavar="DIR",
                        help="folder of the photos; several are put together")
    parser.add_argument("--dataset", nargs="+", metavar="NAME",
                        help="the NAME in NAME_train_align.csv: one for each folder, or several "
                        "in one folder; by default the only one in the folder")
    parser.add_argument("--list_dir", nargs="+", metavar="DIR",
                        help="folder of the lists; by default --data_dir")
    parser.add_argument("--cache_dir", metavar="DIR",
                        help="folder of the cut-out faces; by default "
                        "~/.cache/age-estimation-ldl/crops")


def data_words(args):
    """The given flags for data and device, as words for another command."""
    words = []
    for flag in ("data_dir", "dataset", "list_dir"):
        if getattr(args, flag):
            words += [f"--{flag}", *getattr(args, flag)]
    if args.cache_dir:
        words += ["--cache_dir", args.cache_dir]
    return words if args.device == "auto" else [*words, "--device", args.device]


def add_device_flag(parser):
    """--device, whose value utils.device.device_name() checks."""
    parser.add_argument("--device", default="auto",
                        help="auto (a GPU if PyTorch finds one), cpu, cuda, cuda:N or mps")


def parse_with_overrides(parser, argv=None, which="for example TRAIN.LR 0.01"):
    """Parse flags and KEY VALUE overrides (`TRAIN.LR 0.1`) in any order.

    The pairs are taken out first: with argparse.REMAINDER they would swallow the flags behind
    them, and a flag with several values would swallow them.

    Args:
        parser: argparse.ArgumentParser with the flags; its help gets a line on overrides.
        argv: list of words; by default those of the command line.
        which: which keys there are, for the help.
    Returns:
        argparse.Namespace with the overrides as the flat list `opts`.
    Raises:
        ValueError: a misspelt section, a key in lower case or written KEY=VALUE.
        SystemExit: 2 after a wrong flag or a key without a value, as argparse does.
    """
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [KEY VALUE ...]"
    parser.epilog = "\n\n".join(filter(None, [
        parser.epilog, f"KEY VALUE: config overrides, {which}; the keys, with units, choices and "
                       "defaults, are in defaults.py."]))
    flags, opts = [], []
    tokens = iter(sys.argv[1:] if argv is None else argv)
    for token in tokens:
        _refuse_other_spelling(token)
        if _is_config_key(token):
            value = next(tokens, None)
            if value is None or value.startswith("--"):
                parser.error(f"override '{token}' has no value; write {token} VALUE")
            opts += [token, value]
        else:
            flags.append(token)
    args, others = parser.parse_known_args(flags)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}{_hint(parser, others[0])}")
    args.opts = opts
    return args


def _hint(parser, word):
    """Which flag may be missing before a word, for an error."""
    if word.startswith("-"):
        return ""
    known = parser.format_help()
    wanted = ["--img_dir", "--data_dir"] if Path(word).is_dir() else \
        ["--resume"] if word.endswith(MODEL_ENDINGS) else []
    flag = next((flag for flag in wanted if flag in known), None)
    return f"; write {flag} {word}" if flag else \
        "; each word follows a flag (--help lists them), or is a pair such as TRAIN.LR 0.01"


def _is_config_key(token):
    """True for SECTION.ANYTHING of a section in defaults.py; False for a file such as MODEL.PTH."""
    return bool(CONFIG_KEY.fullmatch(token)) and token.split(".")[0] in _sections() \
        and not Path(token).exists()


def _refuse_other_spelling(token):
    """Refuse a word such as train.lr=0.1, which the flag before it would take as its value."""
    name, equals, value = token.partition("=")
    key = name.upper()
    if key in known_keys() and (equals or name != key) and not Path(token).exists():
        raise ValueError(f"'{token}': a config override is written {key} {value or 'VALUE'}")
    if CONFIG_KEY.fullmatch(token) and token.split(".")[0] not in _sections():
        near = difflib.get_close_matches(token, known_keys(), n=1, cutoff=0.8)
        if near and not Path(token).exists():
            raise ValueError(f"unknown config key '{token}'; did you mean {near[0]}?")


def _sections():
    return {key.split(".")[0] for key in known_keys()}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter,
                    argparse.RawDescriptionHelpFormatter):
    """Help that shows the defaults and keeps the line breaks of the description."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)
