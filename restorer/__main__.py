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

from . import __version__, files, models
from .errors import BadWeights, InvalidOption, RestoreError, UnknownModel, WeightsUnavailable
from .options import FACE_ENHANCE, FACE_MASKS, FORMATS, Options

if TYPE_CHECKING:
    from .pipeline import Progress, Restorer

_COMMANDS = ("restore", "faces", "models")
_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_NAME_LENGTH = 32  # of a file in the bar, in characters

Kept = Callable[[Path], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all well, 1 a photo failed, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        words.insert(0, "restore")
    parsed = _parser().parse_args(words or ["--help"])
    try:
        return parsed.run(parsed)
    except RestoreError as error:
        print(f"restorer: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidOption, UnknownModel)) else 1
    except BrokenPipeError:  # of "| head"; Python would complain of the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("restorer: stopped; finished photos are kept", file=sys.stderr)
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nFolder of the files: {weights}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m restorer",
        description="Restore old, small and damaged photos.",
        epilog="'restore' may be left out: python -m restorer photo.jpg scans/ -o out/. "
        "For its options: python -m restorer restore --help",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--weights-dir", metavar="DIR", help="where the models' files are (weights/)")

    command = commands.add_parser("restore", parents=[weights], help="restore photos and folders of photos")
    command.set_defaults(run=restore)
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files, or folders of them")
    command.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="folder, or file for one photo (beside the photo)"
    )
    command.add_argument("--overwrite", action="store_true", help="restore again what is there already")
    command.add_argument("--model", default=Options.model, help="a name that 'models' lists (%(default)s)")
    command.add_argument("--outscale", type=float, default=Options.outscale, help="1 to 8 (%(default)s)")
    command.add_argument("--format", choices=FORMATS, default=Options.format, help="(%(default)s)")
    command.add_argument(
        "--quality", type=int, default=Options.quality, help="1 to 100, of JPEG, WebP and AVIF (%(default)s)"
    )
    command.add_argument(
        "--denoise",
        type=float,
        default=Options.denoise,
        help="0 to 1, for realesr-general-x4v3: how much noise to remove (%(default)s)",
    )
    command.add_argument(
        "--no-metadata", dest="keep_metadata", action="store_false", help="leave EXIF, XMP and DPI out"
    )
    command.add_argument("--remove-gps", action="store_true", help="leave out where the photo was taken")
    command.add_argument(
        "--face-enhance", choices=FACE_ENHANCE, default=Options.face_enhance, help="(%(default)s)"
    )
    command.add_argument(
        "--face-model", default=Options.face_model, help="a name that 'models' lists (%(default)s)"
    )
    command.add_argument(
        "--face-detector", default=Options.face_detector, help="yunet or retinaface (%(default)s)"
    )
    command.add_argument(
        "--face-strength", type=float, default=Options.face_strength, help="0 to 1: a blend (%(default)s)"
    )
    command.add_argument("--face-mask", choices=FACE_MASKS, default=Options.face_mask, help="(%(default)s)")
    command.add_argument("--face-large", action="store_true", help="also faces of more than 512 pixels")
    command.add_argument(
        "--tile", type=int, default=Options.tile, help="side in pixels; 0: by free memory (%(default)s)"
    )
    command.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")
    command.add_argument("--fp32", action="store_true", help="full precision on a GPU too")

    command = commands.add_parser("faces", parents=[weights], help="find faces: a JSON line for each")
    command.set_defaults(run=faces)
    command.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="files, or folders of them")
    command.add_argument("--draw", type=Path, metavar="OUT", help="folder for copies with the faces drawn in")
    command.add_argument(
        "--face-detector", default=Options.face_detector, help="yunet or retinaface (%(default)s)"
    )
    command.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")

    command = commands.add_parser("models", parents=[weights], help="list the models")
    command.set_defaults(run=list_models)
    return parser


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
