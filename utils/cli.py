"""What the command lines of all scripts share: errors, the device, the trailing overrides."""

import argparse
import difflib
import re
import sys
import warnings
from pathlib import Path

from defaults import known_keys

CONFIG_KEY = re.compile(r"[A-Z]+\.[A-Z0-9_]+")


def run_main(main):
    """Run a script's main(): bad input ends in one line on stderr and exit code 2.

    A warning is one line too, without the place in the code.

    Raises:
        SystemExit: 2 after ValueError or OSError, 130 after Ctrl-C, else main's return value.
    """
    warnings.formatwarning = _in_one_line
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        message = str(error)
        if message.startswith("Caught "):  # in a loader's worker: torch adds its traceback
            message = message.strip().splitlines()[-1].split(": ", 1)[-1]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def _in_one_line(message, category, filename, lineno, line=None, usual=warnings.formatwarning):
    if category is not UserWarning:
        return usual(message, category, filename, lineno, line)
    return f"warning: {' '.join(str(message).split())}\n"


def add_data_flags(parser):
    """Which faces: --data_dir, --dataset, --list_dir, --cache_dir."""
    parser.add_argument("--data_dir", nargs="+", metavar="DIR",
                        help="folder of the photos; several count as one data set")
    parser.add_argument("--dataset", nargs="+", metavar="NAME",
                        help="data set, the NAME in NAME_train_align.csv, one a folder or "
                        "several in one; the folder's only one without it")
    parser.add_argument("--list_dir", nargs="+", metavar="DIR",
                        help="folder of the lists, where it is not --data_dir")
    parser.add_argument("--cache_dir", metavar="DIR",
                        help="folder of the cut-out faces; ~/.cache/age-estimation-ldl/crops "
                        "without it")


def data_words(args):
    """The flags that name the data and the device as they were given, for another command."""
    words = []
    for flag in ("data_dir", "dataset", "list_dir"):
        if getattr(args, flag):
            words += [f"--{flag}", *getattr(args, flag)]
    if args.cache_dir:
        words += ["--cache_dir", args.cache_dir]
    return words if args.device == "auto" else [*words, "--device", args.device]


def add_device_flag(parser):
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"),
                        help="where the network runs; auto: a GPU where there is one")


def parse_with_overrides(parser, argv=None, which="for example TRAIN.LR 0.01"):
    """Parse flags and KEY VALUE overrides (`TRAIN.LR 0.1`) in any order.

    The pairs are taken out first, by the look of their keys: argparse.REMAINDER would swallow
    a flag that follows them, and a flag with several values would swallow them.

    Args:
        parser: with the flags; gets the help on overrides.
        argv: words, by default the command line's.
        which: for the help, which keys there are.
    Returns:
        argparse.Namespace with the overrides as the flat list `opts`.
    Raises:
        ValueError: a key written KEY=VALUE or in lower case.
    """
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [KEY VALUE ...]"
    parser.epilog = "\n\n".join(filter(None, [
        parser.epilog, f"KEY VALUE: config overrides, {which}; the keys, with units, choices and "
                       "defaults, are in defaults.py."]))
    flags, opts = [], []
    tokens = iter(sys.argv[1:] if argv is None else argv)
    for token in tokens:
        _refuse_other_spelling(token)
        is_file_of_flag = flags and flags[-1].startswith("--") and Path(token).is_file()
        if _is_config_key(token) and not is_file_of_flag:  # such as --resume MODEL.PTH
            value = next(tokens, None)
            if value is None or value.startswith("--"):
                parser.error(f"override '{token}' has no value; write {token} VALUE")
            opts += [token, value]
        else:
            flags.append(token)
    args = parser.parse_args(flags)
    args.opts = opts
    return args


def _refuse_other_spelling(token):
    """A key that the flag before it would take for its own value, such as train.lr=0.1."""
    name, equals, value = token.partition("=")
    key = name.upper()
    if key in known_keys() and (equals or name != key) and not Path(token).exists():
        raise ValueError(f"'{token}': a config override is written {key} {value or 'VALUE'}")


def _is_config_key(token):
    """Whether a word is a config key, perhaps misspelt, and not a file such as CLIP.MP4."""
    keys = known_keys()
    return bool(CONFIG_KEY.fullmatch(token)) and (
        token.split(".")[0] in {key.split(".")[0] for key in keys}
        or bool(difflib.get_close_matches(token, keys, n=1, cutoff=0.8)))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter,
                    argparse.RawDescriptionHelpFormatter):
    """Help with defaults shown, where there is one, and the description's line breaks kept."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)
