"""What the command lines of all scripts share: errors, the device, the trailing overrides."""

import argparse
import sys

import torch


def run_main(main):
    """Run a script's main(): bad input ends in one line on stderr and exit code 2.

    Raises:
        SystemExit: 2 after ValueError or OSError, 130 after Ctrl-C, else main's return value.
    """
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def add_device_flag(parser):
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"),
                        help="where the network runs; auto: a GPU where there is one")


def choose_device(name):
    """torch.device for 'auto', 'cpu' or 'cuda'.

    Raises:
        ValueError: cuda asked for where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device found; use --device cpu")
    return torch.device(name)


def parse_with_overrides(parser, argv=None):
    """Parse flags and KEY VALUE overrides in any order.

    A flag after the overrides works, and an unknown one is refused by name: with
    argparse.REMAINDER it would be swallowed into the overrides.

    Returns:
        argparse.Namespace with the overrides as the flat list `opts`.
    """
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", default=[],
                        help="config overrides, for example TRAIN.LR 0.01; the keys, with units "
                             "and choices, are in defaults.py")
    return parser.parse_intermixed_args(argv)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter,
                    argparse.RawDescriptionHelpFormatter):
    """Help with defaults shown and the description's line breaks kept."""
