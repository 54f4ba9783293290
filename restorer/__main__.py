"""The command line: `python -m restorer photo.jpg scans/ -o out/`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, files, models
from .errors import InvalidOption, RestoreError
from .options import FORMATS, Options

if TYPE_CHECKING:
    from .pipeline import Restorer

_COMMANDS = ("restore", "models")


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
        return 2
    except KeyboardInterrupt:
        print("restorer: stopped; finished photos are kept", file=sys.stderr)
        return 130


def restore(parsed: argparse.Namespace) -> int:
    """Restore files and folders, each to a file of its own."""
    tasks = files.plan(parsed.photos, parsed.output, outscale=parsed.outscale)
    if not tasks:
        raise InvalidOption("no photos found")
    if tasks[0].complete:
        parsed.format = _format_of_output(parsed.output, parsed.format)
    from . import pipeline  # numpy and the decoders: --help and a wrong path need neither

    names = Options.names()
    restorer = pipeline.Restorer(
        weights=parsed.weights_dir,
        device=parsed.device,
        half=False if parsed.fp32 else None,
        **{name: value for name, value in vars(parsed).items() if name in names},
    )
    restorer.model(restorer.options)  # an unknown name is an error of the call, not of each photo
    return _restore_all(restorer, tasks, parsed.overwrite)


def _format_of_output(output: Path, chosen: str) -> str:
    form = files.format_of(output)
    if chosen not in ("same", form):
        raise InvalidOption(f"{output} does not end like a {chosen} file: leave --format away, or rename it")
    return form or chosen


def _restore_all(restorer: "Restorer", tasks: list[files.Task], overwrite: bool) -> int:
    from tqdm import tqdm

    start, made, skipped, failed = time.perf_counter(), 0, 0, 0
    # a bar of photos, moved by tiles: its ETA is that of the whole batch
    bar = tqdm(
        total=len(tasks), disable=None, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    )
    with bar:
        for index, task in enumerate(tasks):
            bar.set_description_str(f"{index + 1}/{len(tasks)} {task.source.name} ")

            def follow(done: int, total: int, before: int = index) -> None:
                bar.n = before + done / total
                bar.refresh()

            if not overwrite and (old := task.existing()):
                skipped += 1
                bar.write(f"{task.source}: {old} exists, skipped (--overwrite restores it again)")
                continue
            try:
                result = restorer.restore(task.source.read_bytes(), progress=follow)
                target = task.write(result.data, result.format)
            except (RestoreError, OSError) as error:
                failed += 1
                bar.write(f"{task.source}: failed: {error}", file=sys.stderr)
                continue
            made += 1
            bar.write(
                f"{task.source} -> {target}: {result.width} x {result.height}, "
                f"{result.model}, {result.seconds:.1f} s" + "".join(f"; {text}" for text in result.warnings)
            )
        bar.n = len(tasks)
    seconds = time.perf_counter() - start
    print(f"{made} restored, {skipped} skipped, {failed} failed in {seconds:.1f} s")
    return 1 if failed else 0


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
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="restorer",
        description="Restore old, small and damaged photos.",
        epilog="'restorer photo.jpg' is short for 'restorer restore photo.jpg'.",
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
        "--tile", type=int, default=Options.tile, help="side in pixels; 0: by free memory (%(default)s)"
    )
    command.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")
    command.add_argument("--fp32", action="store_true", help="full precision on a GPU too")

    command = commands.add_parser("models", parents=[weights], help="list the models")
    command.set_defaults(run=list_models)
    return parser


if __name__ == "__main__":
    sys.exit(main())
