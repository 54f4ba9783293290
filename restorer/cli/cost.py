"""`restorer cost`: time photos on this machine and estimate what they cost on others."""

import argparse
import math
import sys
from typing import TYPE_CHECKING

from ..atomic import check_writable, write_atomic
from ..errors import InvalidOption
from ..tables import to_csv

if TYPE_CHECKING:
    from ..cost.pricing import Price


def run(parsed: argparse.Namespace) -> int:
    """Time photos of several sizes and print what each costs here and, estimated, on GPUs."""
    from ..cost import report

    prices, own_price = _prices(parsed.price)
    sizes = [_size(text) for text in parsed.sizes.split(",")]
    if parsed.repeats < 1:
        raise InvalidOption(f"repeats is {parsed.repeats}; it must be 1 or more")
    for file in filter(None, (parsed.csv, parsed.plot)):
        if file.is_dir() or not file.resolve().parent.is_dir():
            raise InvalidOption(f"{file} cannot be written; name a file in an existing folder")
        check_writable(file.resolve().parent)
    if parsed.plot and parsed.plot.suffix.lower() not in (".png", ".svg"):
        raise InvalidOption(f"{parsed.plot} is not a plot file name; use .png or .svg")
    elsewhere = [row for file in parsed.measured for row in report.read_measured(file)]
    measured = report.time_models(
        [name.strip() for name in parsed.models.split(",")],
        sizes,
        repeats=parsed.repeats,
        log=_print_progress,
        weights=parsed.weights_dir,
        device=parsed.device,
    )
    rows = report.merge_measured(measured.rows(prices, own_price), elsewhere)
    print(measured.text(rows, prices))
    if parsed.csv:
        write_atomic(parsed.csv, to_csv(rows))
    if parsed.plot:
        write_atomic(parsed.plot, report.plot(rows, parsed.plot.suffix))
    return 0


def _prices(arguments: list[str]) -> tuple[dict[str, "Price"], float | None]:
    """Return the price table with overrides such as "T4=0.0002", and this machine's price ("0.0002")."""
    from ..cost.pricing import prices

    overrides, own = {}, None
    for text in arguments:
        name, _, number = text.rpartition("=")
        try:
            dollars = float(number)
        except ValueError as error:
            raise InvalidOption(f"price is {text!r}; use 0.0002 or T4=0.0002") from error
        if name:
            overrides[name] = dollars
        elif 0 < dollars < math.inf:
            own = dollars
        else:
            raise InvalidOption(f"price is {text}; it must be above 0 dollars a second")
    return prices(overrides), own


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.strip().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise InvalidOption(f"size is {text!r}; use 512x512, with sides of 16 pixels or more")
    return int(width), int(height)


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
