"""The command line: `python -m restorer photo.jpg scans/ -o out/`."""

import argparse
import io
import json
import math
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import files, models
from .arguments import parser as arguments_parser
from .columns import aligned
from .errors import BadWeights, InvalidOption, RestoreError, UnknownModel, WeightsUnavailable
from .options import Options

if TYPE_CHECKING:
    from .batch import Batch, Record
    from .cost import Price
    from .pipeline import Progress, Restorer

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_NAME_LENGTH = 32  # of a file in the bar, in characters

Kept = Callable[[Path], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all well, 1 a photo failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"restore": restore, "faces": faces, "models": list_models, "cost": cost, "batch": batch}
    if words and words[0] not in (*commands, "-h", "--help", "--version"):
        words.insert(0, "restore")
    parsed = arguments_parser().parse_args(words or ["--help"])
    try:
        return commands[parsed.command](parsed)
    except RestoreError as error:
        print(f"restorer: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidOption, UnknownModel)) else 1
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"restorer: {error}", file=sys.stderr)
            return 1
        # of "| head"; Python would complain of the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("restorer: stopped; what is finished is kept", file=sys.stderr)
        return 130


def restore(parsed: argparse.Namespace) -> int:
    """Restore files and folders, each to a file of its own."""
    tasks = files.plan(parsed.photos, parsed.output, outscale=parsed.outscale, form=parsed.format)
    if not tasks:
        raise InvalidOption("no photos found")
    if not tasks[0].forms:
        parsed.format = _format_of_output(parsed.output, parsed.format)
    options = {name: value for name, value in vars(parsed).items() if name in Options.names()}
    Options(**options)  # a value out of its range is told before anything is loaded
    from . import pipeline  # numpy and the decoders: --help and a wrong path need neither

    restorer = pipeline.Restorer(
        weights=parsed.weights_dir,
        device=parsed.device,
        half=False if parsed.fp32 else None,
        **options,
    )
    restorer.model(restorer.options)  # an unknown name is an error of the call, not of each photo
    start = time.perf_counter()
    originals = {task.source.resolve() for task in tasks}
    counts = _restore_all(restorer, tasks, partial(_kept, overwrite=parsed.overwrite, originals=originals))
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("restored", "skipped", "failed"))
    print(f"{told} in {time.perf_counter() - start:.1f} s")
    return 1 if counts["failed"] else 0


def _format_of_output(output: Path, chosen: str) -> str:
    form = files.format_of(output)
    if chosen not in ("same", form):
        raise InvalidOption(f"{output} does not end like a {chosen} file: leave --format away, or rename it")
    return form or chosen


def _restore_all(restorer: "Restorer", tasks: list[files.Task], kept: Kept) -> Counter[str]:
    """How many photos were restored, skipped, and failed; a line for each is printed."""
    from tqdm import tqdm

    todo = [task for task in tasks if not _skipped(task, kept)]
    counts = Counter(skipped=len(tasks) - len(todo))
    if not todo:
        return counts
    # A bar of photos, moved by tiles: its ETA is that of all that is left
    with tqdm(total=len(todo), desc="Loading the model", bar_format=_BAR, leave=False, disable=None) as bar:
        restorer.load()
        bar.reset()
        for index, task in enumerate(todo):
            bar.set_description_str(f"{index + 1}/{len(todo)} {_short(task.source.name)}")

            def follow(done: int, total: int, before: int = index) -> None:
                bar.n = before + done / total
                bar.refresh()

            outcome, told = _restore_one(restorer, task, kept, follow)
            counts[outcome] += 1
            bar.write(told, file=sys.stderr if outcome == "failed" else sys.stdout)
            bar.n = index + 1
    return counts


def _skipped(task: files.Task, kept: Kept) -> bool:
    old = task.existing()
    reason = kept(old) if old else ""
    if reason:
        print(f"{task.source}: skipped, {reason}")
    return bool(reason)


def _restore_one(
    restorer: "Restorer", task: files.Task, kept: Kept, follow: "Progress"
) -> tuple[Literal["restored", "skipped", "failed"], str]:
    """What became of one photo, and the line that says so."""
    try:
        result = restorer.restore(task.source.read_bytes(), progress=follow)
        target = task.path(result.format)
        # Another process may have written it; or the photo is not of the format that its name announces
        if reason := kept(target):
            return "skipped", f"{task.source}: skipped, {reason}"
    except RestoreError as error:
        return "failed", f"{task.source}: failed, {error}"
    except OSError as error:
        return "failed", f"{task.source}: failed, {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  one photo of a batch: the others go on
        traceback.print_exc()
        return "failed", f"{task.source}: failed, {type(error).__name__}: {error}"
    try:
        files.write_atomic(target, result.data)
    except OSError as error:
        return "failed", f"{task.source}: failed, {target} cannot be written: {error.strerror or error}"
    size = f"{result.width} x {result.height}"
    notes = "".join(f"; {warning}" for warning in result.warnings)
    return "restored", f"{task.source} -> {target}: {size}, {result.model}, {result.seconds:.1f} s{notes}"


def _kept(target: Path, *, overwrite: bool, originals: set[Path]) -> str:
    """Why a file stays as it is, empty where there is none or it may be replaced."""
    if not files.exists(target):
        return ""
    if target.resolve() in originals:
        return f"{target} is itself one of the photos"
    return "" if overwrite else f"{target} exists (--overwrite restores it again)"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3] + "..."


def faces(parsed: argparse.Namespace) -> int:
    """Print a JSON line for each face of each photo; draw them into copies if asked."""
    tasks = files.plan(parsed.photos, parsed.draw, mark="_faces", form="png")
    if not tasks:
        raise InvalidOption("no photos found")
    originals = {task.source.resolve() for task in tasks}
    models.find(parsed.face_detector, models.weights_folder(parsed.weights_dir), "detect")
    from . import pipeline

    restorer = pipeline.Restorer(
        weights=parsed.weights_dir, device=parsed.device, face_detector=parsed.face_detector
    )
    done = [
        _faces_of(task.source, restorer, task.path("png") if parsed.draw else None, originals)
        for task in tasks
    ]
    return 0 if all(done) else 1


def _faces_of(source: Path, restorer: "Restorer", target: Path | None, originals: set[Path]) -> bool:
    """Print the faces of one photo and draw them into `target`; whether all of it could be done."""
    from . import encode
    from .faces import detect

    try:
        seen, found = restorer.find_faces(source.read_bytes())
        if target and (reason := _kept(target, overwrite=True, originals=originals)):
            print(f"{source}: not drawn, {reason}", file=sys.stderr)
        elif target:
            picture = replace(seen, pixels=detect.drawn(seen.pixels, found), alpha=None)
            form = files.format_of(target) or "png"
            files.write_atomic(target, encode.encode(picture, form, quality=Options.quality).data)
    except (WeightsUnavailable, BadWeights):
        raise
    except RestoreError as error:
        print(f"{source}: failed, {error}", file=sys.stderr)
        return False
    except OSError as error:
        print(f"{source}: failed, {error.strerror or error}", file=sys.stderr)
        return False
    for face in found:
        told = {"file": str(source), "box": face.box, "score": face.score}
        print(json.dumps({**told, "landmarks": face.landmarks.tolist()}), flush=True)
    return not (target and target.resolve() in originals)


def list_models(parsed: argparse.Namespace) -> int:
    """Print every model: name, kind, scale, size, licence, whether its file is here, what it is for."""
    weights = models.weights_folder(parsed.weights_dir)
    _fetch(parsed.fetch, weights)
    rows = [("MODEL", "KIND", "SCALE", "MB", "LICENCE", "FILE", "FOR")]
    for model in models.available(weights):
        rows.append(
            (
                model.name,
                model.kind,
                f"{model.scale}x" if model.kind == "upscale" and model.scale else "",
                f"{model.bytes / 1e6:.1f}",
                model.licence,
                "present" if models.is_present(model, weights) else "to download",
                model.about,
            )
        )
    print(aligned(rows, left=len(rows[0])))
    print(f"\nFolder of the files: {weights}")
    return 0


def _fetch(names: list[str], weights: Path) -> None:
    from . import download

    table = {model.name: model for model in models.MODELS}
    for name in names:
        if name not in table:
            raise UnknownModel(f"there is no model {name!r} to fetch. The models are: {', '.join(table)}")
        print(f"{name}: {download.ensure(table[name], weights)}", flush=True)


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
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("restored", "done before", "failed"))
    print(f"{told} in {time.perf_counter() - start:.1f} s; {parsed.output}/manifest has a line for each")
    return 1 if counts["failed"] else 0


def _batched(asked: "Batch", run: Callable, *, retry_failed: bool) -> Counter[str]:
    """How many photos were restored now, done before, and failed, now or before."""
    from tqdm import tqdm

    from . import batch, store

    photos = batch.entries(asked)
    if not photos:
        raise InvalidOption(f"no photos found in {asked.source}")
    counts: Counter[str] = Counter()
    with batch.manifest(store.Store(asked.output)) as manifest:
        states = [manifest.done(photo, asked.digest) for photo in photos]
        done = {batch.RESTORED} if retry_failed else {batch.RESTORED, batch.FAILED}
        todo = [photo for photo, state in zip(photos, states, strict=True) if state not in done]
        counts["done before"] = states.count(batch.RESTORED)
        counts["failed"] = 0 if retry_failed else states.count(batch.FAILED)
        with tqdm(total=len(photos), initial=len(photos) - len(todo), unit="photo", disable=None) as bar:

            def noted(record: "Record") -> None:
                manifest.note(record)
                counts[record.state] += 1
                bar.set_postfix(failed=counts["failed"], refresh=False)
                bar.update()
                if record.state == batch.FAILED:
                    bar.write(f"{record.path}: failed, {record.error}", file=sys.stderr)

            if todo:
                run(asked, todo, noted)
    return counts


def cost(parsed: argparse.Namespace) -> int:
    """Time photos of several sizes here, and tell what each costs here and, estimated, elsewhere."""
    from . import timing

    prices, own_price = _prices(parsed.price)
    sizes = [_size(text) for text in parsed.sizes.split(",")]
    if parsed.repeats < 1:
        raise InvalidOption(f"repeats is {parsed.repeats}; it must be 1 or more")
    for file in filter(None, (parsed.csv, parsed.plot)):
        if file.is_dir() or not file.resolve().parent.is_dir():
            raise InvalidOption(f"{file} cannot be written: name a file in a folder that is there")
    if parsed.plot and parsed.plot.suffix.lower() not in (".png", ".svg"):
        raise InvalidOption(f"{parsed.plot} ends with neither .png nor .svg, as a plot has to")
    elsewhere = [row for file in parsed.measured for row in timing.read_measured(file)]
    names = [name.strip() for name in parsed.models.split(",")]
    places = {"weights": parsed.weights_dir, "device": parsed.device}
    report = timing.timed(names, sizes, repeats=parsed.repeats, told=_to_stderr, **places)
    rows = timing.with_measured(report.rows(prices, own_price), elsewhere)
    print(report.text(rows, prices))
    if parsed.csv:
        files.write_atomic(parsed.csv, timing.as_csv(rows))
    if parsed.plot:
        files.write_atomic(parsed.plot, timing.plot(rows, parsed.plot.suffix))
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


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
