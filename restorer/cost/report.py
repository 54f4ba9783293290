"""What photos cost, as a report: timings here, estimates elsewhere, as a table, CSV and a plot."""

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
    """Every timing, and where it was made.

    device  what computed, as its maker calls it
    cores   physical cores of it that are paid for, 0 for a GPU
    cold    by model, seconds from starting Python to a loaded model
    left    what could not be timed, and why
    """

    device: str
    cores: int
    cold: dict[str, float]
    timings: list[Timing]
    left: list[str]

    def rows(self, prices: Mapping[str, Price], own_price: float | None = None) -> list[dict[str, object]]:
        """A row for each timing: on this machine ("measured"), and on each other GPU ("estimated").

        own_price  dollars a second of this machine, in place of the table's
        """
        name = pricing.CPU if self.cores else pricing.find_price(self.device, prices)
        if own_price is None and name:
            own_price = prices[name].usd_per_second * (self.cores or 1)
        found = []
        for timing in self.timings:
            here = _row(timing, name or self.device, timing.steady, own_price, "measured")
            own = {"cold": self.cold.get(timing.model), "first": timing.first, "quoted": timing.quoted}
            found.append(here | own)
            for price in prices.values():
                if price.fp16_tflops and price.name != name:
                    seconds = pricing.estimate_seconds(timing.work, price, elsewhere=timing.elsewhere)
                    found.append(_row(timing, price.name, seconds, price.usd_per_second, "estimated"))
        return found

    def text(self, rows: Sequence[Row], prices: Mapping[str, Price]) -> str:
        """All of it for people."""
        cores = f", {self.cores} physical core{'s' if self.cores > 1 else ''}" if self.cores else ""
        dates = ", ".join(sorted({price.date for price in prices.values()}))
        lines = [f"On {self.device}{cores}. Prices of {dates}."]
        lines += [f"{model}: cold start {seconds:.1f} s" for model, seconds in self.cold.items()]
        table = [["photo", "device", "faces", "first s", "seconds", "$/image", "images/$", "quoted s", ""]]
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
                    _number(row["quoted"], "{:.2f}"),
                    str(row["how"]),
                ]
            )
        return "\n".join([*lines, "", align_columns(table, left=2), *dict.fromkeys(self.left)])


def _number(value: object, form: str) -> str:
    return "" if value is None else form.format(value)


def _row(timing: Timing, device: str, seconds: float, price: float | None, how: str) -> dict[str, object]:
    return {
        "model": timing.model,
        "width": timing.width,
        "height": timing.height,
        "kB": round(timing.bytes / 1000),
        "faces": timing.faces,
        "device": device,
        "cold": None,
        "first": None,
        "quoted": None,
        "elsewhere": timing.elsewhere,
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
    """Time photos of these (width, height) with these models: without faces and, where possible, with one.

    log  is log what is being timed
    """
    report = Report(*device_name(device), {}, [], [])
    for name in names:
        restorer = Restorer(weights=weights, device=device, model=name)
        by_model: dict[str, list[tuple[int, int]]] = {}  # "auto" may take another one for large photos
        for width, height in sizes:
            restorer.load(width * height)
            model = restorer.model(restorer.options, width * height)
            by_model.setdefault(model.name, []).append((width, height))
        for chosen, own in by_model.items():
            log(f"{chosen}: cold start")
            report.cold[chosen] = cold_start(chosen, weights=weights, device=device)
            fresh = partial(load, chosen, weights=weights, device=device)
            for face in (False, True):
                _time_sizes(report, chosen, own, fresh, face=face, repeats=repeats, log=log)
    return report


def _time_sizes(
    report: Report,
    model: str,
    sizes: Sequence[tuple[int, int]],
    fresh: Callable[..., Restorer],
    *,
    face: bool,
    repeats: int,
    log: Callable[[str], object],
) -> None:
    try:
        for width, height in sizes:
            what = f"{model}: {width} x {height}{', with a face' if face else ''}"
            log(what)
            done = measure(fresh, width, height, face=face, repeats=repeats)
            seconds = ", ".join(f"{one:.3f}" for one in (done.first, *done.following))
            log(f"{what}: {seconds} s")
            if face and not done.faces:  # it would pass for a second one without
                report.left.append(f"No face was restored in {width} x {height} pixels.")
            else:
                report.timings.append(done)
    except (WeightsUnavailable, BadWeights) as error:
        if not face:
            raise
        report.left.append(f"Faces were not timed: {str(error).partition(' (')[0]}")


def merge_measured(rows: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """The rows, with those that were measured elsewhere in place of what was estimated for the same."""

    def subject(row: Row) -> tuple[object, ...]:
        return tuple(str(row[name]) for name in ("model", "width", "height", "faces", "device"))

    known = {subject(row) for row in measured}
    return [row for row in rows if row["how"] == "measured" or subject(row) not in known] + list(measured)


def read_measured(file: Path) -> list[Row]:
    """The measured rows of a file that columns.as_csv() wrote. Raises InvalidOption for any other."""
    try:
        with file.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["how"] == "measured"]
        return [{name: _value(name, text) for name, text in row.items()} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"{file} is no table of costs: {error}") from error


def _value(name: str, text: str) -> object:
    if name in ("model", "device", "how"):
        return text
    if name in ("width", "height", "faces", "kB"):
        return int(text)
    return float(text) if text else None


def plot(rows: Sequence[Row], suffix: str) -> bytes:
    """Images for a dollar by size and device as a picture: ".png" or ".svg"."""
    from matplotlib.figure import Figure  # no pyplot: no window, and nothing global

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    kinds = dict.fromkeys((row["model"], row["faces"], row["device"], row["how"]) for row in rows)
    for kind in kinds:
        model, faces, device, how = kind
        own = [row for row in rows if (row["model"], row["faces"], row["device"], row["how"]) == kind]
        points = [
            (row["width"] * row["height"] / 1e6, row["images_per_usd"])  # type: ignore[operator]
            for row in own
            if row["images_per_usd"] is not None
        ]
        if points:
            label = f"{device}, {model}{f', {faces} face' if faces else ''} ({how})"
            axes.plot(*zip(*points, strict=True), "o-" if how == "measured" else ".--", label=label)
    axes.set(xscale="log", yscale="log", xlabel="megapixels of the photo", ylabel="images for a dollar")
    sizes = sorted({row["width"] * row["height"] / 1e6 for row in rows})  # type: ignore[operator]
    axes.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    out = io.BytesIO()
    figure.savefig(out, format=suffix.lower().removeprefix("."), dpi=120)
    return out.getvalue()
