"""The quality report as one page of HTML: the table, plots, and each photo with a before/after slider."""

import base64
import html
import io
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..images.resample import luma, to_uint8
from ..tables import Row
from . import summary

_PREVIEW = (1200, 800)  # of the page's pictures in pixels, turned for upright ones
_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Picture:
    """What is shown of one photo: versions by name, (H, W, 3) uint8 or uint16 RGB of one size."""

    name: str
    versions: dict[str, np.ndarray]


def page(
    rows: Sequence[Row],
    told: Mapping[str, object],
    picture: Callable[[str], Picture],
    variant: str,
) -> bytes:
    """One page of HTML that needs no other file.

    rows, told  see report.as_json()
    picture     gives what is to be seen of a photo; asked for one after the other
    variant     the one that the photos are ranked by, and that is seen first
    """
    statistics = summary.summarise(rows)
    head, *body = summary.table(statistics)
    cells = "".join(
        f"<tr class={row[1]}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return (
        string.Template(_TEMPLATE.read_text("utf-8"))
        .substitute(
            told="".join(
                f"<dt>{html.escape(name)}</dt><dd>{html.escape(_listed(value))}</dd>"
                for name, value in told.items()
            ),
            head="".join(f"<th>{html.escape(cell)}</th>" for cell in head),
            rows=cells,
            plots=_plots(rows, statistics),
            ranked=html.escape(
                f"Ranked by the gain of {variant} over bicubic: "
                f"{summary.METRICS[summary.first_metric(rows)].label}. "
                "Drag to compare; figures are means of all seeds."
            ),
            photos="".join(
                _figure(picture(name), place, rows, variant) for name, place in summary.ranked(rows, variant)
            ),
        )
        .encode()
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
    for of in dict.fromkeys((summary.BICUBIC, variant)):
        own = [row for row in rows if (row["photo"], row["variant"]) == (photo, of)]
        figures = [
            f"{metric.label} {summary.formatted(name, found['mean'])}"
            for name, metric in summary.METRICS.items()
            if (found := summary.figures(own, name))
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


def _plots(rows: Sequence[Row], statistics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Each metric of each photo and seed, by variant, as SVG."""
    from matplotlib.figure import Figure  # no pyplot: no window, and nothing global

    names = [name for name in summary.METRICS if any(name in found for found in statistics.values())]
    variants = list(statistics)
    figure = Figure(figsize=(3.2 * max(1, len(names)), 0.8 + 0.5 * len(variants)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        values = [
            [
                float(row[name])  # type: ignore[arg-type]
                for row in rows
                if row["variant"] == variant and summary.is_number(row.get(name)) and math.isfinite(row[name])  # type: ignore[arg-type]
            ]
            for variant in variants
        ]
        axes.boxplot(values, orientation="horizontal", showfliers=False, widths=0.6)
        for height, own in enumerate(values):
            axes.plot(own, [height + 1] * len(own), "o", markersize=3, alpha=0.5, color="#2b6cb0")
        axes.set_yticks(range(1, len(variants) + 1), variants if place == 0 else [""] * len(variants))
        axes.invert_yaxis()
        arrow = {1: " →", -1: " ←", 0: ""}[summary.METRICS[name].better]
        axes.set_title(summary.METRICS[name].label + arrow, fontsize=10)
        axes.tick_params(labelsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index("<svg") :]
