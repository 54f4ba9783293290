"""What an evaluation found: summed up, ranked, as a table and JSON. See html_report.py."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..tables import Row

BICUBIC = "bicubic"  # the variant that every other is compared with


class Metric(NamedTuple):
    """better is 1 where more is better, -1 where less is, 0 where neither is meant."""

    label: str
    digits: int
    better: int


METRICS = {
    "psnr": Metric("PSNR dB", 2, 1),
    "ssim": Metric("SSIM", 4, 1),
    "psnr_y": Metric("PSNR-Y dB", 2, 1),
    "ssim_y": Metric("SSIM-Y", 4, 1),
    "lpips": Metric("LPIPS", 3, -1),
    "niqe": Metric("NIQE", 2, -1),
    "sharpness": Metric("sharpness", 1, 0),
    "blockiness": Metric("blockiness", 3, -1),
    "consistency": Metric("consistency dB", 2, 1),
    "drift": Metric("face drift", 4, -1),
}
STATISTICS = ("mean", "median", "worst")


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By variant and metric: mean, median and worst over its rows, and over how many.

    With several seeds also their spread: the standard deviation of the means of each.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variant in dict.fromkeys(str(row["variant"]) for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        found[variant] = {name: one for name in METRICS if (one := figures(own, name))}
    return found


def figures(rows: Sequence[Row], name: str) -> dict[str, float]:
    """One metric of some rows: mean, median, worst, count and spread; empty where no row has it."""
    values = [(row["seed"], float(value)) for row in rows if is_number(value := row.get(name))]  # type: ignore[arg-type]
    if not values:
        return {}
    plain = [value for _, value in values]
    found = {
        "mean": statistics.fmean(plain),
        "median": statistics.median(plain),
        "worst": max(plain) if METRICS[name].better < 0 else min(plain),
        "count": len(plain),
    }
    seeds = {seed for seed, _ in values}
    if len(seeds) > 1:
        means = [statistics.fmean(value for own, value in values if own == seed) for seed in seeds]
        if all(map(math.isfinite, means)):
            found["spread"] = statistics.stdev(means)
    return found


def is_number(value: object) -> bool:
    """Infinity is one, as the PSNR of equal pictures; NaN and None are not."""
    return isinstance(value, int | float) and not math.isnan(value)


def is_finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def ranked(rows: Sequence[Row], variant: str) -> list[tuple[str, str]]:
    """The photos with a place, best and worst first: ("a.png", "best of 3"), ("b.png", "worst of 3"), ...

    By what the variant gained over bicubic, averaged over seeds, in the first metric that there is.
    """
    name = first_metric(rows)
    better = METRICS[name].better or 1

    def score(photo: str, of: str) -> float:
        values = [row[name] for row in rows if (row["photo"], row["variant"]) == (photo, of) and name in row]
        values = [float(value) for value in values if is_number(value)]  # type: ignore[arg-type]
        return better * statistics.fmean(values) if values else -math.inf

    def gain(photo: str) -> float:
        own, plain = score(photo, variant), score(photo, BICUBIC)
        return own - plain if math.isfinite(own) and math.isfinite(plain) else own

    photos = sorted(dict.fromkeys(str(row["photo"]) for row in rows), key=gain, reverse=True)
    order = []
    for step in range((len(photos) + 1) // 2):
        order += [step, len(photos) - 1 - step]
    return [(photos[place], _placed(place, len(photos))) for place in dict.fromkeys(order)]


def first_metric(rows: Sequence[Row]) -> str:
    """The metric that photos are ranked by."""
    return next(name for name in METRICS if any(name in row for row in rows))


def _placed(place: int, count: int) -> str:
    told = {0: "best", count - 1: "worst"}.get(place, f"number {place + 1}")
    return f"{told} of {count}" if count > 1 else "the only one"


def formatted(name: str, value: float | None) -> str:
    """A figure as people read it, "-" for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{METRICS[name].digits}f}"


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """The summary as rows of text: a head, then a row for each variant and statistic, gains over bicubic."""
    names = [name for name in METRICS if any(name in found for found in summary.values())]
    rows = [["", "", *(METRICS[name].label for name in names)]]
    plain = summary.get(BICUBIC, {})
    for variant, found in summary.items():
        for statistic in (*STATISTICS, "spread"):
            if not any(statistic in figures for figures in found.values()):
                continue
            cells = []
            for name in names:
                value = found.get(name, {}).get(statistic)
                text = formatted(name, value)
                base = plain.get(name, {}).get("mean")
                if statistic == "mean" and variant != BICUBIC and is_finite(value, base):
                    text += f" ({value - base:+.{METRICS[name].digits}f})"  # type: ignore[operator]
                cells.append(text)
            rows.append([variant if statistic == "mean" else "", statistic, *cells])
    return rows


def as_json(rows: Sequence[Row], told: Mapping[str, object]) -> bytes:
    """`told`, how the rows came about, the "summary", and the "rows"; null for what is no number in JSON."""
    whole = _without_infinity({"told": told, "summary": summarise(rows), "rows": rows})
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _without_infinity(value: object) -> object:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, Mapping):
        return {str(key): _without_infinity(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
