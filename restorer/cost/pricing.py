"""Convert seconds into dollars, and estimate the seconds of other devices from those of this one."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidOption

TABLE = Path(__file__).resolve().parents[2] / "assets/gpu_prices.csv"
CPU = "CPU"
# Share of a GPU's peak that 3 x 3 convolutions of 64 channels reach in 16 bits. Assumed, not measured
_OF_PEAK, _OF_BANDWIDTH = 0.35, 0.7


@dataclass(frozen=True)
class Price:
    """A row of the price table.

    usd_per_second  price of one GPU, or of one physical CPU core
    fp16_tflops     peak of dense 16-bit matrix arithmetic in 10^12 operations per second, 0 for the CPU
    gb_per_second   peak memory bandwidth in 10^9 bytes per second, 0 for the CPU
    date, source    when and where the price was read
    """

    name: str
    usd_per_second: float
    fp16_tflops: float
    gb_per_second: float
    date: str
    source: str


@dataclass(frozen=True)
class Work:
    """Work of a network on one photo: floating-point operations, and bytes read and written in 16 bits."""

    flops: float
    bytes: float


def prices(overrides: Mapping[str, float] | None = None) -> dict[str, Price]:
    """Return the price table by name.

    overrides  dollars per second by name, in place of the table's

    Raises InvalidOption for a name that is not in the table, and for a price that is not above 0.
    """
    result = {}
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            result[row["name"]] = Price(
                row["name"],
                float(row["usd_per_second"]),
                float(row["fp16_tflops"] or 0),
                float(row["gb_per_second"] or 0),
                row["date"],
                row["source"],
            )
    for name, dollars in (overrides or {}).items():
        if name not in result:
            raise InvalidOption(f"no price for {name!r}; use one of {', '.join(result)}")
        if not 0 < dollars < math.inf:
            raise InvalidOption(f"price of {name} is {dollars}; it must be above 0 dollars a second")
        result[name] = replace(result[name], usd_per_second=dollars, date="now", source="set by the caller")
    return result


def match_gpu(device: str, table: Mapping[str, Price]) -> str | None:
    """Return the table's name of a GPU from its driver's: "A100-80GB" for "NVIDIA A100-SXM4-80GB"."""
    words = set(re.split(r"[\s\-]+", device.upper()))
    matches = [name for name in table if set(name.upper().split("-")) <= words]
    return max(matches, key=len, default=None)


def dollars(seconds: float, usd_per_second: float) -> float:
    """Return the cost of `seconds` of a device."""
    return seconds * usd_per_second


def images_per_dollar(seconds: float, usd_per_second: float) -> float:
    """Return how many images a dollar buys, at `seconds` each."""
    return 1 / dollars(seconds, usd_per_second)


def estimate_seconds(work: Work, price: Price, *, codec_seconds: float) -> float:
    """Estimate the seconds of a photo on a GPU of the table (roofline model; Williams et al., 2009).

    codec_seconds  seconds of decoding and encoding, which run on the CPU

    The network takes the longer of its arithmetic and its memory traffic, at an assumed 35 % and 70 % of the
    GPU's peaks.
    """
    arithmetic = work.flops / (price.fp16_tflops * 1e12 * _OF_PEAK)
    traffic = work.bytes / (price.gb_per_second * 1e9 * _OF_BANDWIDTH)
    return codec_seconds + max(arithmetic, traffic)
