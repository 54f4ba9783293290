"""What an evaluation found, for people and programs: figures summed up, CSV, JSON and one page of HTML."""

import base64
import csv
import html
import io
import json
import math
import statistics
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from . import files
from .pixels import luma, to_uint8

_PREVIEW = (1200, 800)  # of the page's pictures in pixels, turned for upright ones
_TEMPLATE = Path(__file__).with_name("report.html")
Row = Mapping[str, object]


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


@dataclass(frozen=True)
class Picture:
    """What is shown of one photo: versions by name, (H, W, 3) uint8 or uint16 RGB of one size."""

    name: str
    versions: dict[str, np.ndarray]


def summed_up(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By variant and metric: mean, median and worst over its rows, and over how many.

    With several seeds also their spread: the standard deviation of the means of each.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for variant in dict.fromkeys(str(row["variant"]) for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        found[variant] = {name: figures for name in METRICS if (figures := _figures(own, name))}
    return found


def _figures(rows: Sequence[Row], name: str) -> dict[str, float]:
    values = [(row["seed"], float(value)) for row in rows if _is_number(value := row.get(name))]  # type: ignore[arg-type]
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def ranked(rows: Sequence[Row], variant: str) -> list[tuple[str, str]]:
    """The photos with a place, best and worst first: ("a.png", "best of 3"), ("b.png", "worst of 3"), ...

    By what the variant gained over bicubic, averaged over seeds, in the first metric that there is.
    """
    name = _first_metric(rows)
    better = METRICS[name].better or 1

    def score(photo: str, of: str) -> float:
        values = [row[name] for row in rows if (row["photo"], row["variant"]) == (photo, of) and name in row]
        values = [float(value) for value in values if _is_number(value)]  # type: ignore[arg-type]
        return better * statistics.fmean(values) if values else -math.inf

    def gain(photo: str) -> float:
        own, plain = score(photo, variant), score(photo, "bicubic")
        return own - plain if math.isfinite(own) and math.isfinite(plain) else own

    photos = sorted(dict.fromkeys(str(row["photo"]) for row in rows), key=gain, reverse=True)
    order = []
    for step in range((len(photos) + 1) // 2):
        order += [step, len(photos) - 1 - step]
    return [(photos[place], _placed(place, len(photos))) for place in dict.fromkeys(order)]


def _first_metric(rows: Sequence[Row]) -> str:
    return next(name for name in METRICS if any(name in row for row in rows))


def _placed(place: int, count: int) -> str:
    told = {0: "best", count - 1: "worst"}.get(place, f"number {place + 1}")
    return f"{told} of {count}" if count > 1 else "the only one"


def shown(name: str, value: float | None) -> str:
    """A figure as people read it, "-" for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{METRICS[name].digits}f}"


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """The summary as rows of text: a head, then a row for each variant and statistic, gains over bicubic."""
    names = [name for name in METRICS if any(name in found for found in summary.values())]
    rows = [["", "", *(METRICS[name].label for name in names)]]
    plain = summary.get("bicubic", {})
    for variant, found in summary.items():
        for statistic in (*STATISTICS, "spread"):
            if not any(statistic in figures for figures in found.values()):
                continue
            cells = []
            for name in names:
                value = found.get(name, {}).get(statistic)
                text = shown(name, value)
                base = plain.get(name, {}).get("mean")
                if statistic == "mean" and variant != "bicubic" and None not in (value, base):
                    text += f" ({value - base:+.{METRICS[name].digits}f})"  # type: ignore[operator]
                cells.append(text)
            rows.append([variant if statistic == "mean" else "", statistic, *cells])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as lines whose columns stand below each other, the first two to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write(
    folder: Path,
    rows: Sequence[Row],
    told: Mapping[str, object],
    picture: Callable[[str], Picture],
    variant: str,
) -> None:
    """report.csv, report.json and report.html into a folder.

    rows     one for each photo, variant and seed: "photo", "variant", "seed" and the metrics
    told     how they came about
    picture  gives what is to be seen of a photo
    variant  the one that the photos are ranked by, and that is seen first
    """
    summary = summed_up(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    files.write_atomic(folder / "report.csv", out.getvalue().encode())
    whole = _without_infinity({"told": told, "summary": summary, "rows": rows})
    files.write_atomic(
        folder / "report.json", json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False).encode()
    )
    pictures = [(picture(name), place) for name, place in ranked(rows, variant)]
    page = _page(rows, summary, told, pictures, variant)
    files.write_atomic(folder / "report.html", page.encode())


def _without_infinity(value: object) -> object:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, Mapping):
        return {str(key): _without_infinity(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(
    rows: Sequence[Row],
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    told: Mapping[str, object],
    pictures: Sequence[tuple[Picture, str]],
    variant: str,
) -> str:
    head, *body = table(summary)
    cells = "".join(
        f"<tr class={row[1]}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return string.Template(_TEMPLATE.read_text("utf-8")).substitute(
        told="".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(_listed(value))}</dd>"
            for name, value in told.items()
        ),
        head="".join(f"<th>{html.escape(cell)}</th>" for cell in head),
        rows=cells,
        plots=_plots(rows, summary),
        ranked=html.escape(
            f"By what {variant} gained over bicubic in {METRICS[_first_metric(rows)].label}; drag to compare."
        ),
        photos="".join(_figure(picture, place, rows, variant) for picture, place in pictures),
    )


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(picture: Picture, place: str, rows: Sequence[Row], variant: str) -> str:
    names = list(picture.versions)
    right = variant if variant in names else names[-1]
    corner = _liveliest(picture.versions[right])
    note = "a part of it, at 100 %" if corner != (slice(None), slice(None)) else "at 100 %"
    images = "".join(
        f'<img data-name="{html.escape(name)}" alt="{html.escape(f"{picture.name}: {name}")}" '
        f'src="data:image/webp;base64,{_webp(pixels[corner])}">'
        for name, pixels in picture.versions.items()
    )
    selects = "".join(
        f'<select aria-label="{side}">'
        + "".join(
            f"<option{' selected' if name == chosen else ''}>{html.escape(name)}</option>" for name in names
        )
        + "</select>"
        for side, chosen in (("left picture", names[0]), ("right picture", right))
    )
    return (
        f"<figure><figcaption><b>{html.escape(picture.name)}</b> {place}, {note}"
        f"<span>{html.escape(_of_photo(rows, picture.name, variant))}</span></figcaption>"
        f'<div class="pair"><div class="compare">{images}<input type="range" min="0" max="100" value="50" '
        f'aria-label="how much of the left picture is seen, in percent"></div>'
        f'<div class="choice">{selects}</div></div></figure>'
    )


def _of_photo(rows: Sequence[Row], photo: str, variant: str) -> str:
    parts = []
    for of in dict.fromkeys(("bicubic", variant)):
        own = [row for row in rows if (row["photo"], row["variant"]) == (photo, of)]
        figures = [
            f"{metric.label} {shown(name, found['mean'])}"
            for name, metric in METRICS.items()
            if (found := _figures(own, name))
        ]
        if figures:
            parts.append(f"{of}: {', '.join(figures)}")
    return "; ".join(parts)


def _liveliest(pixels: np.ndarray) -> tuple[slice, slice]:
    """Where to look in a picture too large to be shown whole: the part with the most edges."""
    height, width = pixels.shape[:2]
    wide, high = sorted(_PREVIEW, reverse=width >= height)
    if width <= wide and height <= high:
        return slice(None), slice(None)
    wide, high = min(wide, width), min(high, height)
    small = cv2.resize(luma(to_uint8(pixels)), None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
    energy = cv2.integral(np.abs(cv2.Laplacian(small, cv2.CV_32F)))
    rows, columns = max(1, high // 8), max(1, wide // 8)
    rows, columns = min(rows, len(small)), min(columns, small.shape[1])
    sums = energy[rows:] - energy[:-rows]
    sums = sums[:, columns:] - sums[:, :-columns]
    top, left = (8 * int(at) for at in np.unravel_index(sums.argmax(), sums.shape))
    top, left = min(top, height - high), min(left, width - wide)
    return slice(top, top + high), slice(left, left + wide)


def _webp(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(to_uint8(np.ascontiguousarray(pixels))).save(out, "WEBP", quality=88)
    return base64.b64encode(out.getvalue()).decode()


def _plots(rows: Sequence[Row], summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Each metric of each photo and seed, by variant, as SVG."""
    from matplotlib.figure import Figure  # no pyplot: no window, and nothing global

    names = [name for name in METRICS if any(name in found for found in summary.values())]
    variants = list(summary)
    figure = Figure(figsize=(3.2 * max(1, len(names)), 0.8 + 0.5 * len(variants)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        values = [
            [
                float(row[name])  # type: ignore[arg-type]
                for row in rows
                if row["variant"] == variant and _is_number(row.get(name)) and math.isfinite(row[name])  # type: ignore[arg-type]
            ]
            for variant in variants
        ]
        axes.boxplot(values, orientation="horizontal", showfliers=False, widths=0.6)
        for height, own in enumerate(values):
            axes.plot(own, [height + 1] * len(own), "o", markersize=3, alpha=0.5, color="#2b6cb0")
        axes.set_yticks(range(1, len(variants) + 1), variants if place == 0 else [""] * len(variants))
        axes.invert_yaxis()
        arrow = {1: " →", -1: " ←", 0: ""}[METRICS[name].better]
        axes.set_title(METRICS[name].label + arrow, fontsize=10)
        axes.tick_params(labelsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index("<svg") :]
