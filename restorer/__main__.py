"""The command line: `python -m restorer photo.jpg scans/ -o out/`."""

import argparse
import io
import json
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

from . import commands, files, models, sources
from .arguments import parser as arguments_parser
from .columns import aligned
from .errors import BadWeights, InvalidOption, RestoreError, UnknownModel, WeightsUnavailable
from .options import Options

if TYPE_CHECKING:
    from .pipeline import Progress, Restorer

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_DIGITS = 12  # of a sha256 in a list; receipts and the server's /models have all 64
_NAME_LENGTH = 32  # of a file in the bar, in characters

Kept = Callable[[Path], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all well, 1 a photo failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = {"restore": restore, "faces": faces, "models": list_models}
    known |= {"cost": commands.cost, "batch": commands.batch}
    if words and words[0] not in (*known, "-h", "--help", "--version"):
        words.insert(0, "restore")
    parsed = arguments_parser().parse_args(words or ["--help"])
    try:
        return known[parsed.command](parsed)
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
        loaded = ""
        for index, task in enumerate(todo):
            if (model := _load_for(restorer, task.source)) not in ("", loaded):
                bar.write(model, file=sys.stderr)
                loaded = model
            if index == 0:
                bar.reset()  # loading does not count in the time that is left
            bar.set_description_str(f"{index + 1}/{len(todo)} {_short(task.source.name)}")

            def follow(done: int, total: int, before: int = index) -> None:
                if total:  # 0 while a model is downloaded, which has a bar of its own
                    bar.n = before + done / total
                    bar.refresh()

            outcome, told = _restore_one(restorer, task, kept, follow)
            counts[outcome] += 1
            bar.write(told, file=sys.stderr if outcome == "failed" else sys.stdout)
            bar.n = index + 1
    return counts


def _load_for(restorer: "Restorer", file: Path) -> str:
    """Load the model for a photo; a line with its name and backend, "" where the photo cannot be read."""
    from . import photo

    try:
        size = photo.size(file.read_bytes(), max_pixels=restorer.limits.input_pixels)
    except (RestoreError, OSError):
        return ""  # restoring it tells why
    pixels = size.width * size.height
    model = restorer.load(pixels).model(restorer.options, pixels)
    source = sources.locate(model, restorer.weights)
    return f"using {model.name} ({source.kind if source else 'removed'}) on {restorer.backend(model)}"


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
    """Print every model: name, kind, scale, size, licence, where its weights come from, what it is for."""
    weights = models.weights_folder(parsed.weights_dir)
    if parsed.fetch:
        _fetch(parsed.fetch, weights)
    rows = [("MODEL", "KIND", "SCALE", "MB", "LICENCE", "WEIGHTS", "SHA256", "FOR")]
    for model in models.available(weights):
        source = sources.locate(model, weights)
        sha256 = source.sha256 if source else model.sha256
        rows.append(
            (
                model.name,
                model.kind,
                f"{model.scale}x" if model.kind == "upscale" and model.scale else "",
                f"{(source or model).bytes / 1e6:.1f}",
                model.licence,
                source.kind if source else "to download",
                sha256[:_DIGITS] or "not checked",
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
        source = download.ensure(table[name], weights)
        print(f"{name}: {source.path} ({source.kind})", flush=True)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
