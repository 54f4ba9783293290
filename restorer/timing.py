"""How long photos take on this machine, and what work they are: what `python -m restorer cost` measures."""

import csv
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from . import cost, photo
from .columns import aligned
from .cost import Price, Work
from .errors import BadWeights, InvalidOption, RestoreError, WeightsUnavailable
from .pipeline import Restorer, load

Row = Mapping[str, object]
_PROJECT = Path(__file__).resolve().parent.parent
_SAMPLES = _PROJECT / "assets/samples"


@dataclass(frozen=True)
class Timing:
    """One kind of photo, timed.

    width, height  of the photo in pixels
    bytes          of its file, a JPEG
    faces          that were restored
    first          seconds of the first photo, the model being loaded; face models are loaded meanwhile
    following      seconds of each of the ones that follow
    elsewhere      seconds of those in decoding and encoding, which no GPU does
    quoted         seconds that Restorer.plan() told after the first photo, without faces
    work           of the networks
    """

    model: str
    width: int
    height: int
    bytes: int
    faces: int
    first: float
    following: tuple[float, ...]
    elsewhere: float
    quoted: float | None
    work: Work

    @property
    def steady(self) -> float:
        """Seconds, the median of the photos that follow."""
        return statistics.median(self.following)


def sample(width: int, height: int, *, face: bool) -> bytes:
    """A JPEG of that size, quality 90, of the project's samples mirrored, with or without a face."""
    picture = np.asarray(Image.open(_SAMPLES / "coffee.jpg").convert("RGB"))
    rows, columns = (max(0, side - own) for side, own in zip((height, width), picture.shape, strict=False))
    canvas = np.pad(picture, ((0, rows), (0, columns), (0, 0)), "symmetric")[:height, :width].copy()
    if face:
        portrait = np.asarray(Image.open(_SAMPLES / "portrait.jpg").convert("RGB"))
        side = min(width, height, len(portrait))
        canvas[:side, :side] = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure(
    loaded: Callable[[], Restorer], width: int, height: int, *, face: bool = False, repeats: int = 3
) -> Timing:
    """Time a photo of that size.

    loaded  gives a Restorer with its model loaded that restored nothing yet

    Raises any RestoreError; WeightsUnavailable for `face` where the face models are not here.
    """
    data = sample(width, height, face=face)
    restorer = loaded()
    wanted = "on" if face else "off"
    first = restorer.restore(data, face_enhance=wanted)
    quoted = restorer.plan(photo.decode(data), face_enhance=wanted).seconds
    results = [restorer.restore(data, face_enhance=wanted) for _ in range(repeats)]
    with counted() as work:
        restorer.restore(data, face_enhance=wanted)
    return Timing(
        model=first.model,
        width=width,
        height=height,
        bytes=len(data),
        faces=sum(one.restored for one in first.faces),
        first=first.seconds,
        following=tuple(one.seconds for one in results),
        elsewhere=statistics.median(one.stages["decode"] + one.stages["encode"] for one in results),
        quoted=quoted,
        work=work(),
    )


def cold_start(model: str, *, weights: str | None, device: str | None) -> float:
    """Seconds from starting Python to a loaded model, files in the system's cache.

    Raises RestoreError where that fails.
    """
    script = "import json, sys, restorer; restorer.load(**json.loads(sys.argv[1]))"
    given = json.dumps({"model": model, "weights": weights, "device": device})
    known = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, given], env=known, capture_output=True, text=True)
    if done.returncode:
        raise RestoreError(f"a process of its own could not load {model}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def device_name(device: str | None) -> tuple[str, int]:
    """What computes, as its maker calls it, and how many physical cores that is: 0 for a GPU."""
    import torch

    from . import engine

    chosen = engine.pick_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen), 0
    if chosen.type != "cpu":
        return chosen.type.upper(), 0
    import psutil

    return _processor(), psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def _processor() -> str:
    import platform

    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def counted() -> Iterator[Callable[[], Work]]:
    """Count what PyTorch does meanwhile in this thread.

    Floating-point operations as torch.utils.flop_counter has them, matrix products and convolutions; and
    the elements that every operation reads and writes, as if each had two bytes.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        flops = elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            with self:  # without gradients, operations come as they were called: a conv2d holds a convolution
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves: Sequence = tree_leaves((args, kwargs, out))
                self.elements += sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
            if formula := flop_registry.get(func.overloadpacket):
                self.flops += formula(*args, **(kwargs or {}), out_val=out)
            return out

    with Counter() as counter:
        yield lambda: Work(float(counter.flops), 2.0 * counter.elements)


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
        name = cost.CPU if self.cores else cost.named(self.device, prices)
        if own_price is None and name:
            own_price = prices[name].usd_per_second * (self.cores or 1)
        found = []
        for timing in self.timings:
            here = _row(timing, name or self.device, timing.steady, own_price, "measured")
            own = {"cold": self.cold.get(timing.model), "first": timing.first, "quoted": timing.quoted}
            found.append(here | own)
            for price in prices.values():
                if price.fp16_tflops and price.name != name:
                    seconds = cost.estimated_seconds(timing.work, price, elsewhere=timing.elsewhere)
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
        return "\n".join([*lines, "", aligned(table, left=2), *dict.fromkeys(self.left)])


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
        "usd_per_image": None if price is None else cost.dollars(seconds, price),
        "images_per_usd": None if price is None else cost.images_per_dollar(seconds, price),
        "how": how,
    }


def timed(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    repeats: int,
    told: Callable[[str], object],
    weights: str | None = None,
    device: str | None = None,
) -> Report:
    """Time photos of these (width, height) with these models: without faces and, where possible, with one.

    told  is told what is being timed
    """
    report = Report(*device_name(device), {}, [], [])
    for name in names:
        restorer = Restorer(weights=weights, device=device, model=name).load()
        chosen = restorer.model(restorer.options).name
        told(f"{chosen}: cold start")
        report.cold[chosen] = cold_start(chosen, weights=weights, device=device)
        for face in (False, True):
            try:
                for width, height in sizes:
                    what = f"{chosen}: {width} x {height}{', with a face' if face else ''}"
                    told(what)
                    fresh = partial(load, chosen, weights=weights, device=device)
                    done = measure(fresh, width, height, face=face, repeats=repeats)
                    seconds = ", ".join(f"{one:.3f}" for one in (done.first, *done.following))
                    told(f"{what}: {seconds} s")
                    report.timings.append(done)
            except (WeightsUnavailable, BadWeights) as error:
                if not face:
                    raise
                report.left.append(f"Faces were not timed: {str(error).partition(' (')[0]}")
    return report


def with_measured(rows: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """The rows, with those that were measured elsewhere in place of what was estimated for the same."""

    def subject(row: Row) -> tuple[object, ...]:
        return tuple(str(row[name]) for name in ("model", "width", "height", "faces", "device"))

    known = {subject(row) for row in measured}
    return [row for row in rows if row["how"] == "measured" or subject(row) not in known] + list(measured)


def read_measured(file: Path) -> list[Row]:
    """The measured rows of a file that as_csv() wrote. Raises InvalidOption for any other."""
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


def as_csv(rows: Sequence[Row]) -> bytes:
    """The rows as a file for spreadsheets."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


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
