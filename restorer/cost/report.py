"""Report the cost of photos: timings of this machine and estimates for GPUs, as a table and a plot."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BadWeights, InvalidOption, WeightsUnavailable
from ..pipeline import Restorer, load
from ..tables import Row, align_columns
from . import pricing
from .benchmark import Timing, cold_start, device_name, measure
from .pricing import Price


@dataclass(frozen=True)
class Report:
    """Timings of one machine.

    device       hardware name
    cores        number of physical CPU cores to pay for, 0 for a GPU
    cold_starts  seconds from starting Python to a loaded model, by model
    skipped      why some photos were not timed
    """

    device: str
    cores: int
    cold_starts: dict[str, float]
    timings: list[Timing]
    skipped: list[str]

    def rows(self, prices: Mapping[str, Price], own_price: float | None = None) -> list[dict[str, object]]:
        """Return a "measured" row for each timing, and an "estimated" one for each other GPU.

        own_price  dollars per second of this machine, in place of the table's
        """
        name = pricing.CPU if self.cores else pricing.match_gpu(self.device, prices)
        if own_price is None and name:
            own_price = prices[name].usd_per_second * (self.cores or 1)
        rows = []
        for timing in self.timings:
            row = _row(timing, name or self.device, timing.seconds, own_price, "measured")
            row["cold_start"] = self.cold_starts.get(timing.model)
            row["first"] = timing.first
            row["planned"] = timing.plan_seconds
            rows.append(row)
            for price in prices.values():
                if price.fp16_tflops and price.name != name:
                    seconds = pricing.estimate_seconds(timing.work, price, codec_seconds=timing.codec_seconds)
                    rows.append(_row(timing, price.name, seconds, price.usd_per_second, "estimated"))
        return rows

    def text(self, rows: Sequence[Row], prices: Mapping[str, Price]) -> str:
        """Return the report as readable text; `rows` are those of rows()."""
        cores = f", {self.cores} physical core{'s' if self.cores > 1 else ''}" if self.cores else ""
        dates = ", ".join(sorted({price.date for price in prices.values()}))
        lines = [f"On {self.device}{cores}. Prices of {dates}."]
        lines += [f"{model}: cold start {seconds:.1f} s" for model, seconds in self.cold_starts.items()]
        table = [["photo", "device", "faces", "first s", "seconds", "$/image", "images/$", "planned s", ""]]
        for row in rows:
            measured = row["how"] == "measured"
            size = f"{row['width']} x {row['height']}, {row['kB']} kB, {row['model']}" if measured else ""
            table.append(
                [
                    size,
                    str(row["device"]),
                    str(row["faces"]) if measured else "",
                    _number(row["first"], "{:.2f}"),
                    _number(row["seconds"], "{:.3f}"),
                    _number(row["usd_per_image"], "{:.2g}"),
                    _number(row["images_per_usd"], "{:,.0f}"),
                    _number(row["planned"], "{:.2f}"),
                    str(row["how"]),
                ]
            )
        return "\n".join([*lines, "", align_columns(table, left=2), *dict.fromkeys(self.skipped)])


def _number(value: object, template: str) -> str:
    return "" if value is None else template.format(value)


_COLUMNS = (
    *("model", "width", "height", "kB", "faces", "device", "cold_start", "first", "planned", "codec"),
    *("teraflop", "gigabytes", "seconds", "usd_per_second", "usd_per_image", "images_per_usd", "how"),
)


def _row(timing: Timing, device: str, seconds: float, price: float | None, how: str) -> dict[str, object]:
    return {
        "model": timing.model,
        "width": timing.width,
        "height": timing.height,
        "kB": round(timing.bytes / 1000),
        "faces": timing.faces,
        "device": device,
        "cold_start": None,
        "first": None,
        "planned": None,
        "codec": timing.codec_seconds,
        "teraflop": timing.work.flops / 1e12,
        "gigabytes": timing.work.bytes / 1e9,
        "seconds": seconds,
        "usd_per_second": price,
        "usd_per_image": None if price is None else pricing.dollars(seconds, price),
        "images_per_usd": None if price is None else pricing.images_per_dollar(seconds, price),
        "how": how,
    }


def time_models(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    repeats: int,
    log: Callable[[str], object],
    weights: str | None = None,
    device: str | None = None,
) -> Report:
    """Time photos of each (width, height) with each model, without a face and, where possible, with one.

    log  called with a message before and after each measurement

    Raises any RestoreError, except that absent face models only skip the photos with a face.
    """
    report = Report(*device_name(device), {}, [], [])
    for name in names:
        restorer = Restorer(weights=weights, device=device, model=name)
        by_model: dict[str, list[tuple[int, int]]] = {}  # "auto" may choose another one for large photos
        for width, height in sizes:
            restorer.load(width * height)
            chosen = restorer.model(restorer.options, width * height)
            by_model.setdefault(chosen.name, []).append((width, height))
        for model, model_sizes in by_model.items():
            log(f"{model}: cold start")
            report.cold_starts[model] = cold_start(model, weights=weights, device=device)
            load_model = partial(load, model, weights=weights, device=device)
            for face in (False, True):
                _time_sizes(report, model, model_sizes, load_model, face=face, repeats=repeats, log=log)
    return report


def _time_sizes(
    report: Report,
    model: str,
    sizes: Sequence[tuple[int, int]],
    load_model: Callable[..., Restorer],
    *,
    face: bool,
    repeats: int,
    log: Callable[[str], object],
) -> None:
    try:
        for width, height in sizes:
            label = f"{model}: {width} x {height}{', with a face' if face else ''}"
            log(label)
            timing = measure(load_model, width, height, face=face, repeats=repeats)
            log(f"{label}: {', '.join(f'{seconds:.3f}' for seconds in (timing.first, *timing.warm))} s")
            if face and not timing.faces:  # would duplicate the photo without a face
                report.skipped.append(f"No face was restored in {width} x {height} pixels.")
            else:
                report.timings.append(timing)
    except (WeightsUnavailable, BadWeights) as error:
        if not face:
            raise
        report.skipped.append(f"Faces were not timed: {str(error).partition(' (')[0]}")


def merge_measured(rows: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Return `rows` with estimates replaced by the measurements of other machines, which come last."""

    def key(row: Row) -> tuple[object, ...]:
        return tuple(str(row[name]) for name in ("model", "width", "height", "faces", "device"))

    keys = {key(row) for row in measured}
    return [row for row in rows if row["how"] == "measured" or key(row) not in keys] + list(measured)


def read_measured(file: Path) -> list[Row]:
    """Return the measured rows of a CSV file of `restorer cost`. Raises InvalidOption for any other file."""
    try:
        with file.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["how"] == "measured"]
        return [{name: _value(name, row[name]) for name in _COLUMNS} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InvalidOption(f"{file} is not a CSV file of `restorer cost`: {error}") from error


def _value(name: str, text: str) -> object:
    if name in ("model", "device", "how"):
        return text
    if name in ("width", "height", "faces", "kB"):
        return int(text)
    return float(text) if text else None


def plot(rows: Sequence[Row], suffix: str) -> bytes:
    """Plot images per dollar by size and device; return the bytes of a ".png" or ".svg" file."""
    from matplotlib.figure import Figure  # pyplot would open windows and keep global state

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    curves = dict.fromkeys((row["model"], row["faces"], row["device"], row["how"]) for row in rows)
    for curve in curves:
        model, faces, device, how = curve
        own = [row for row in rows if (row["model"], row["faces"], row["device"], row["how"]) == curve]
        points = [
            (row["width"] * row["height"] / 1e6, row["images_per_usd"])  # type: ignore[operator]
            for row in own
            if row["images_per_usd"] is not None
        ]
        if points:
            label = f"{device}, {model}{f', {faces} face' if faces else ''} ({how})"
            axes.plot(*zip(*points, strict=True), "o-" if how == "measured" else ".--", label=label)
    axes.set(xscale="log", yscale="log", xlabel="photo size in megapixels", ylabel="images per dollar")
    sizes = sorted({row["width"] * row["height"] / 1e6 for row in rows})  # type: ignore[operator]
    axes.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    out = io.BytesIO()
    figure.savefig(out, format=suffix.lower().removeprefix("."), dpi=120)
    return out.getvalue()
