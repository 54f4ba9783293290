"""Render the quality report as one HTML page: table, plots, and a before/after slider for each photo."""

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

_PREVIEW = (1200, 800)  # largest image on the page in pixels; swapped for portrait images
_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class PhotoImages:
    """The images of one photo by variant: (H, W, 3) uint8 or uint16 RGB, all of one size."""

    name: str
    versions: dict[str, np.ndarray]


def page(
    rows: Sequence[Row],
    provenance: Mapping[str, object],
    read_images: Callable[[str], PhotoImages],
    variant: str,
) -> bytes:
    """Return a self-contained HTML page.

    rows, provenance  as for summary.to_json()
    read_images       returns the images of a photo, called for one photo at a time
    variant           the variant that photos are ranked by and that is shown first
    """
    statistics = summary.summarise(rows)
    head, *body = summary.table(statistics)
    cells = "".join(
        f"<tr class={row[1]}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return (
        string.Template(_TEMPLATE.read_text("utf-8"))
        .substitute(
            provenance="".join(
                f"<dt>{html.escape(name)}</dt><dd>{html.escape(join(value))}</dd>"
                for name, value in provenance.items()
            ),
            head="".join(f"<th>{html.escape(cell)}</th>" for cell in head),
            rows=cells,
            plots=_plots(rows, statistics),
            ranked=html.escape(
                f"Ranked by the gain of {variant} over bicubic in "
                f"{summary.METRICS[summary.ranking_metric(rows)].label}. "
                "Drag to compare. Metrics are means of all seeds."
            ),
            photos="".join(
                _figure(read_images(name), rank, rows, variant)
                for name, rank in summary.rank_photos(rows, variant)
            ),
        )
        .encode(errors="backslashreplace")
    )


def join(value: object) -> str:
    """Return the text of a value of the provenance."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figure(images: PhotoImages, rank: str, rows: Sequence[Row], variant: str) -> str:
    names = list(images.versions)
    right = variant if variant in names else names[-1]
    crop = _most_detailed_crop(images.versions[right])
    note = "crop at 100 %" if crop != (slice(None), slice(None)) else "at 100 %"
    tags = "".join(
        f'<img data-name="{html.escape(name)}" alt="{html.escape(f"{images.name}: {name}")}" '
        f'src="data:image/webp;base64,{_webp(pixels[crop])}">'
        for name, pixels in images.versions.items()
    )
    selects = "".join(
        f'<select aria-label="{label}">'
        + "".join(
            f"<option{' selected' if name == selected else ''}>{html.escape(name)}</option>" for name in names
        )
        + "</select>"
        for label, selected in (("left image", names[0]), ("right image", right))
    )
    return (
        f"<figure><figcaption><b>{html.escape(images.name)}</b> {rank}, {note}"
        f"<span>{html.escape(_metrics_text(rows, images.name, variant))}</span></figcaption>"
        f'<div class="pair"><div class="compare">{tags}<input type="range" min="0" max="100" value="50" '
        f'aria-label="visible part of the left image in percent"></div>'
        f'<div class="choice">{selects}</div></div></figure>'
    )


def _metrics_text(rows: Sequence[Row], photo: str, variant: str) -> str:
    """Return a photo's mean metrics of bicubic and of the variant in one line."""
    parts = []
    for name in dict.fromkeys((summary.BICUBIC, variant)):
        own = [row for row in rows if (row["photo"], row["variant"]) == (photo, name)]
        means = [
            f"{metric.label} {summary.format_value(key, values['mean'])}"
            for key, metric in summary.METRICS.items()
            if (values := summary.metric_statistics(own, key))
        ]
        if means:
            parts.append(f"{name}: {', '.join(means)}")
    return "; ".join(parts)


def _most_detailed_crop(pixels: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns to show: everything if it fits _PREVIEW, else where most edges are."""
    height, width = pixels.shape[:2]
    crop_width, crop_height = sorted(_PREVIEW, reverse=width >= height)
    if width <= crop_width and height <= crop_height:
        return slice(None), slice(None)
    crop_width, crop_height = min(crop_width, width), min(crop_height, height)
    eighth = max(1, width // 8), max(1, height // 8)
    small = cv2.resize(luma(to_uint8(pixels)), eighth, interpolation=cv2.INTER_AREA)
    energy = cv2.integral(np.abs(cv2.Laplacian(small, cv2.CV_32F)))
    rows, columns = max(1, crop_height // 8), max(1, crop_width // 8)
    rows, columns = min(rows, len(small)), min(columns, small.shape[1])
    sums = energy[rows:] - energy[:-rows]
    sums = sums[:, columns:] - sums[:, :-columns]
    top, left = (8 * int(index) for index in np.unravel_index(sums.argmax(), sums.shape))
    top, left = min(top, height - crop_height), min(left, width - crop_width)
    return slice(top, top + crop_height), slice(left, left + crop_width)


def _webp(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(to_uint8(np.ascontiguousarray(pixels))).save(out, "WEBP", quality=88)
    return base64.b64encode(out.getvalue()).decode()


def _plots(rows: Sequence[Row], statistics: summary.Summary) -> str:
    """Return an SVG with a box plot for each metric, by variant, with a dot for each photo and seed."""
    from matplotlib.figure import Figure  # pyplot would open windows and keep global state

    names = [name for name in summary.METRICS if any(name in by_metric for by_metric in statistics.values())]
    variants = list(statistics)
    figure = Figure(figsize=(3.2 * max(1, len(names)), 0.8 + 0.5 * len(variants)), layout="constrained")
    for position, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), position + 1)
        values = [
            [
                float(row[name])  # type: ignore[arg-type]
                for row in rows
                if row["variant"] == variant and summary.is_number(row.get(name)) and math.isfinite(row[name])  # type: ignore[arg-type]
            ]
            for variant in variants
        ]
        axes.boxplot(values, orientation="horizontal", showfliers=False, widths=0.6)
        for index, own in enumerate(values):
            axes.plot(own, [index + 1] * len(own), "o", markersize=3, alpha=0.5, color="#2b6cb0")
        axes.set_yticks(range(1, len(variants) + 1), variants if position == 0 else [""] * len(variants))
        axes.invert_yaxis()
        arrow = {1: " →", -1: " ←", 0: ""}[summary.METRICS[name].better]
        axes.set_title(summary.METRICS[name].label + arrow, fontsize=10)
        axes.tick_params(labelsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index("<svg") :]
