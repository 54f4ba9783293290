"""Convert seconds into dollars, and estimate the seconds of other devices from those of this one."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidOption

TABLE = Path(__file__).resolve().parents[2] / "assets/gpu_prices.csv"
CPU = "CPU"
# Of a GPU's peak: what 3 x 3 convolutions of 64 channels in 16 bits are taken to reach. Assumed, not measured
_OF_PEAK, _OF_BANDWIDTH = 0.35, 0.7


@dataclass(frozen=True)
class Price:
    """A row of the table.

    usd_per_second  of one GPU, or of one physical core of a CPU
    fp16_tflops     peak of dense 16-bit matrix arithmetic in 10^12 operations a second, 0 for the CPU
    gb_per_second   peak of its memory in 10^9 bytes a second, 0 for the CPU
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
    """What a network does for one photo: floating-point operations, and bytes read and written in 16 bits."""

    flops: float
    bytes: float

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def prices(overrides: Mapping[str, float] | None = None, table: Path = TABLE) -> dict[str, Price]:
    """The table by name, with other dollars a second for the names in `overrides`.

    Raises InvalidOption for a name that is not in it, and for a price that is not above 0.
    """
    found = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["name"]] = Price(
                row["name"],
                float(row["usd_per_second"]),
                float(row["fp16_tflops"] or 0),
                float(row["gb_per_second"] or 0),
                row["date"],
                row["source"],
            )
    for name, dollars in (overrides or {}).items():
        is_known_gpu(name, found)
        if not 0 < dollars < math.inf:
            raise InvalidOption(f"the price of {name} is {dollars}; it must be above 0 dollars a second")
        own = found[name]
        found[name] = Price(name, dollars, own.fp16_tflops, own.gb_per_second, "now", "given by the caller")
    return found


def is_known_gpu(name: str, table: Mapping[str, Price]) -> Price:
    """The price of that name. Raises InvalidOption with the names there are."""
    if name not in table:
        raise InvalidOption(f"there is no price for {name!r}; there are prices for {', '.join(table)}")
    return table[name]


def find_price(device: str, table: Mapping[str, Price]) -> str | None:
    """The table's name for a GPU as its driver calls it ("NVIDIA A100-SXM4-80GB": "A100-80GB"), or None."""
    words = set(re.split(r"[\s\-]+", device.upper()))
    fitting = [name for name in table if set(name.upper().split("-")) <= words]
    return max(fitting, key=len, default=None)


def dollars(seconds: float, usd_per_second: float) -> float:
    """What so many seconds of a device cost."""
    return seconds * usd_per_second


def images_per_dollar(seconds: float, usd_per_second: float) -> float:
    """How many images of so many seconds each a dollar buys."""
    return 1 / dollars(seconds, usd_per_second)


def estimate_seconds(work: Work, price: Price, *, elsewhere: float) -> float:
    """Seconds that a photo would take on a GPU of the table (roofline model; Williams et al., 2009).

    elsewhere  seconds of decoding and encoding, which are the processor's, wherever the network runs

    The network takes as long as its arithmetic or its memory traffic, whichever is longer, each at an
    assumed part of the GPU's peak: 35 % and 70 %.
    """
    arithmetic = work.flops / (price.fp16_tflops * 1e12 * _OF_PEAK)
    traffic = work.bytes / (price.gb_per_second * 1e9 * _OF_BANDWIDTH)
    return elsewhere + max(arithmetic, traffic)
