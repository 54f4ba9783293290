"""What commands print about photos besides their results."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..folders import LeftOut


def print_left_out(left_out: Iterable[LeftOut]) -> Counter[str]:
    """Print a line for each file and folder that is left out; count those and the failures among them."""
    counts: Counter[str] = Counter()
    for one in left_out:
        print(one, file=sys.stderr)
        counts["failed" if one.failed else "left out"] += 1
    return counts


def print_failure(source: Path, error: Exception) -> None:
    """Print that a photo failed, and why."""
    print(f"{source}: failed, {getattr(error, 'strerror', None) or error}", file=sys.stderr)


def summarize(counts: Counter[str], *states: str) -> str:
    """Return "4 restored, 0 skipped, 1 failed, 3 left out"; the parts after "failed" only if not 0."""
    shown = [*states, "failed", *(state for state in ("left out", "with warnings") if counts[state])]
    return ", ".join(f"{counts[state]} {state}" for state in shown)
