"""Interleave contestants and summarise their times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

OURS = "restorer"
EQUAL = 100.0  # dB of equal pictures: JSON has no infinity
_SECONDS = 60  # after which a line has no further round
_LEAST, _MOST = 2, 15


def turns(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each starts one later, so that none always follows the same one."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int | None = None,
    keep: Callable[[Any], Any] = lambda out: out,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every contestant, round by round, and keep(what it gave in the first round).

    rounds  None: 2 to 15, until a minute is over
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, Any] = {}
    begin = time.perf_counter()
    number = 0
    while number < (rounds or _LEAST) or (
        rounds is None and number < _MOST and time.perf_counter() - begin < _SECONDS
    ):
        for name in turns(list(runs), number):
            start = time.perf_counter()
            out = runs[name]()
            seconds[name].append(time.perf_counter() - start)
            if number == 0:
                outputs[name] = keep(out)
            del out  # before the next one needs the memory
        number += 1
    return seconds, outputs


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return {name: {"min", "median", "ratio"}}: seconds, and the median over rounds of the ratio to OURS."""
    result = {}
    for name, own in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(own, seconds[OURS], strict=True)]
        result[name] = {"min": min(own), "median": statistics.median(own), "ratio": statistics.median(ratios)}
    return result
