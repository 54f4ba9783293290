"""Parse the command line and run its command."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from ..exit_status import exit_status
from . import backends, batch, cost, faces, look, models, restore
from .parser import device_name, parser

COMMANDS = {
    "restore": restore.run,
    "faces": faces.run,
    "look": look.run,
    "models": models.run,
    "batch": batch.run,
    "cost": cost.run,
    "backends": backends.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 success, 1 a photo failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in (*COMMANDS, "-h", "--help", "--version"):
        words.insert(0, "restore")
    parsed = parser().parse_args(words or ["--help"])
    return exit_status("restorer", partial(_run, parsed), interrupted="stopped; finished photos are kept")


def _run(parsed: argparse.Namespace) -> int:
    if "backend" in parsed:
        parsed.device = device_name(parsed.device, parsed.backend)
    return COMMANDS[parsed.command](parsed)
