"""Turn expected errors into a message and an exit status."""

import io
import os
import sys
from collections.abc import Callable

from .errors import InvalidOption, RestoreError, UnknownModel


def exit_status(program: str, command: Callable[[], int], *, interrupted: str) -> int:
    """Run a command and return its exit status: 1 after a RestoreError or OSError, 2 for wrong usage.

    interrupted  message after Ctrl-C, which exits with 130
    """
    try:
        return command()
    except RestoreError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidOption, UnknownModel)) else 1
    except BrokenPipeError:  # from "| head"; Python would report the unwritten output at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130


def escape_unprintable() -> None:
    """Let standard output and error escape characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
