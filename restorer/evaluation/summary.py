"""Summarise the rows of an evaluation: statistics, ranking, text table and JSON. See also html_report.py."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..tables import Row

BICUBIC = "bicubic"  # the baseline variant

# Variant, metric, statistic
Summary = Mapping[str, Mapping[str, Mapping[str, float]]]


class Metric(NamedTuple):
    """better is 1 if higher is better, -1 if lower is better, 0 if neither."""

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
    """Return metric_statistics() by variant and metric, without the metrics that no row has."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for variant in dict.fromkeys(str(row["variant"]) for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        result[variant] = {name: values for name in METRICS if (values := metric_statistics(own, name))}
    return result


def metric_statistics(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return the mean, median, worst and count of one metric over `rows`; empty if no row has it.

    With several seeds also "spread": the standard deviation of the means of each seed.
    """
    by_seed = [(row["seed"], float(value)) for row in rows if is_number(value := row.get(name))]  # type: ignore[arg-type]
    if not by_seed:
        return {}
    values = [value for _, value in by_seed]
    result = {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "worst": max(values) if METRICS[name].better < 0 else min(values),
        "count": len(values),
    }
    seeds = {seed for seed, _ in by_seed}
    if len(seeds) > 1:
        means = [statistics.fmean(value for own, value in by_seed if own == seed) for seed in seeds]
        if all(map(math.isfinite, means)):
            result["spread"] = statistics.stdev(means)
    return result


def is_number(value: object) -> bool:
    """Return whether the value is a number; infinity is, as the PSNR of equal images, NaN is not."""
    return isinstance(value, int | float) and not math.isnan(value)


def rank_photos(rows: Sequence[Row], variant: str) -> list[tuple[str, str]]:
    """Return the photos from both ends of the ranking: ("a.png", "best of 3"), ("b.png", "worst of 3"), ...

    The rank is by the variant's gain over bicubic, averaged over seeds, in ranking_metric().
    """
    name = ranking_metric(rows)
    better = METRICS[name].better or 1

    def score(photo: str, variant: str) -> float:
        own = [row for row in rows if (row["photo"], row["variant"]) == (photo, variant) and name in row]
        values = [float(row[name]) for row in own if is_number(row[name])]  # type: ignore[arg-type]
        return better * statistics.fmean(values) if values else -math.inf

    def gain(photo: str) -> float:
        own, baseline = score(photo, variant), score(photo, BICUBIC)
        return own - baseline if math.isfinite(own) and math.isfinite(baseline) else own

    photos = sorted(dict.fromkeys(str(row["photo"]) for row in rows), key=gain, reverse=True)
    order = []
    for step in range((len(photos) + 1) // 2):
        order += [step, len(photos) - 1 - step]
    return [(photos[rank], _rank_label(rank, len(photos))) for rank in dict.fromkeys(order)]


def ranking_metric(rows: Sequence[Row]) -> str:
    """Return the metric that photos are ranked by: the first that any row has."""
    return next(name for name in METRICS if any(name in row for row in rows))


def _rank_label(rank: int, count: int) -> str:
    label = {0: "best", count - 1: "worst"}.get(rank, f"number {rank + 1}")
    return f"{label} of {count}" if count > 1 else "the only photo"


def format_value(name: str, value: float) -> str:
    """Format a metric's value for display; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{METRICS[name].digits}f}"


def table(summary: Summary) -> list[list[str]]:
    """Return the summary as rows of text: a header, then a row for each variant and statistic.

    The means of variants also show the gain over bicubic.
    """
    names = [name for name in METRICS if any(name in by_metric for by_metric in summary.values())]
    rows = [["", "", *(METRICS[name].label for name in names)]]
    baseline = summary.get(BICUBIC, {})
    for variant, by_metric in summary.items():
        for statistic in (*STATISTICS, "spread"):
            if not any(statistic in values for values in by_metric.values()):
                continue
            cells = []
            for name in names:
                value = by_metric.get(name, {}).get(statistic, math.nan)
                gain = value - baseline.get(name, {}).get("mean", math.nan)
                text = format_value(name, value)
                if statistic == "mean" and variant != BICUBIC and math.isfinite(gain):
                    text += f" ({gain:+.{METRICS[name].digits}f})"
                cells.append(text)
            rows.append([variant if statistic == "mean" else "", statistic, *cells])
    return rows


def to_json(rows: Sequence[Row], provenance: Mapping[str, object]) -> bytes:
    """Return the report as JSON: "provenance", "summary" and "rows"; infinity and NaN become null."""
    text = json.dumps({"provenance": provenance, "summary": summarise(rows), "rows": rows})
    report = json.loads(text, parse_constant=lambda _: None)
    return json.dumps(report, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
