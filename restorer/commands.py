"""The commands that do a great deal: batch and cost. The others are in __main__.py."""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from . import columns, files
from .errors import InvalidOption
from .options import Options

if TYPE_CHECKING:
    from .batch import Batch, Record
    from .cost import Price


def batch(parsed: argparse.Namespace) -> int:
    """Restore a folder of any size; what earlier runs did is not done again."""
    for name in ("workers", "gpus_per_worker"):
        if (getattr(parsed, name) or 0) < 0:
            raise InvalidOption(f"{name} is {getattr(parsed, name)}; it must be 0 or more")
    if parsed.cpus_per_worker < 1:
        raise InvalidOption(f"cpus_per_worker is {parsed.cpus_per_worker}; it must be 1 or more")
    options = Options(**{name: value for name, value in vars(parsed).items() if name in Options.names()})
    from . import batch, cluster

    asked = batch.prepared(
        parsed.source,
        parsed.output,
        options,
        weights=parsed.weights_dir,
        device=parsed.device,
        half=False if parsed.fp32 else None,
        threads=parsed.cpus_per_worker if parsed.ray else 0,
    )
    place = {"address": parsed.ray, "workers": parsed.workers, "cpus": parsed.cpus_per_worker}
    run = partial(cluster.run, **place, gpus=parsed.gpus_per_worker) if parsed.ray else batch.run
    start = time.perf_counter()
    counts = _batched(asked, run, retry_failed=parsed.retry_failed)
    outcomes = ("restored", "done before", "failed") + (("with warnings",) if counts["with warnings"] else ())
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in outcomes)
    print(f"{told} in {time.perf_counter() - start:.1f} s; {parsed.output}/.manifest has a line for each")
    return 1 if counts["failed"] else 0


def _batched(asked: "Batch", run: Callable, *, retry_failed: bool) -> Counter[str]:
    """How many photos were restored now, done before, and failed, now or before."""
    from tqdm import tqdm

    from . import batch, store

    photos = batch.photos(asked)
    if not photos:
        raise InvalidOption(f"no photos found in {asked.source}")
    counts: Counter[str] = Counter()
    outputs = store.Store(asked.output)
    with batch.manifest(outputs) as manifest:
        here = {one.path for one in outputs.files()} if outputs.exists() else set()
        todo, kept = [], []
        for photo in photos:
            state, output = manifest.done(photo, asked.digest)
            done = output in here if state == batch.RESTORED else state == batch.FAILED and not retry_failed
            if not done:
                todo.append(photo)
            else:
                counts["done before" if state == batch.RESTORED else batch.FAILED] += 1
                kept += [output] if output else []
        with tqdm(total=len(photos), initial=len(photos) - len(todo), unit="photo", disable=None) as bar:

            def noted(record: "Record") -> None:
                manifest.note(record)
                counts[record.state] += 1
                if record.warnings:
                    counts["with warnings"] += 1
                    if counts["with warnings"] == 1:
                        bar.write(f"{record.path}: {record.warnings}", file=sys.stderr)
                bar.set_postfix(failed=counts["failed"], refresh=False)
                bar.update()
                if record.state == batch.FAILED:
                    bar.write(f"{record.path}: failed, {record.error}", file=sys.stderr)

            if todo:
                run(asked, batch.entries(asked, todo, kept), noted)
    return counts


def cost(parsed: argparse.Namespace) -> int:
    """Time photos of several sizes here, and tell what each costs here and, estimated, elsewhere."""
    from . import cost_report

    prices, own_price = _prices(parsed.price)
    sizes = [_size(text) for text in parsed.sizes.split(",")]
    if parsed.repeats < 1:
        raise InvalidOption(f"repeats is {parsed.repeats}; it must be 1 or more")
    for file in filter(None, (parsed.csv, parsed.plot)):
        if file.is_dir() or not file.resolve().parent.is_dir():
            raise InvalidOption(f"{file} cannot be written: name a file in a folder that is there")
    if parsed.plot and parsed.plot.suffix.lower() not in (".png", ".svg"):
        raise InvalidOption(f"{parsed.plot} ends with neither .png nor .svg, as a plot has to")
    elsewhere = [row for file in parsed.measured for row in cost_report.read_measured(file)]
    names = [name.strip() for name in parsed.models.split(",")]
    places = {"weights": parsed.weights_dir, "device": parsed.device}
    report = cost_report.timed(names, sizes, repeats=parsed.repeats, told=_to_stderr, **places)
    rows = cost_report.with_measured(report.rows(prices, own_price), elsewhere)
    print(report.text(rows, prices))
    if parsed.csv:
        files.write_atomic(parsed.csv, columns.as_csv(rows))
    if parsed.plot:
        files.write_atomic(parsed.plot, cost_report.plot(rows, parsed.plot.suffix))
    return 0


def _prices(given: list[str]) -> tuple[dict[str, "Price"], float | None]:
    """The table with the prices of ["T4=0.0002"], and this machine's of ["0.0002"]."""
    from .cost import prices

    overrides, own = {}, None
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            dollars = float(number)
        except ValueError as error:
            raise InvalidOption(f"the price {text!r} should be like 0.0002, or T4=0.0002") from error
        if name:
            overrides[name] = dollars
        elif 0 < dollars < math.inf:
            own = dollars
        else:
            raise InvalidOption(f"the price is {text}; it must be above 0 dollars a second")
    return prices(overrides), own


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.strip().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise InvalidOption(f"the size {text!r} should be like 512x512, from 16 pixels a side")
    return int(width), int(height)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
