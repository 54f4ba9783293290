"""`restorer restore`: photos and folders to files."""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import output_paths
from ..atomic import copy_times, write_atomic
from ..errors import ImageTooLarge, InvalidOption, RestoreError
from ..folders import LeftOut
from ..images import file_types
from ..progress import Progress
from .parser import limits, options_of, sequences
from .summary import print_left_out, summarize

if TYPE_CHECKING:
    from ..pipeline import Restorer
    from ..result import Result

_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_NAME_LENGTH = 32  # characters of a file name in the progress bar


@dataclass(frozen=True)
class _Settings:
    """What applies to every photo: the mask to fill, the file for the mask that was filled, and the rest."""

    restorer: "Restorer"
    skip_reason: Callable[[Path], str]
    mask: bytes | None
    mask_out: Path | None
    keep_times: bool


def run(parsed: argparse.Namespace) -> int:
    """Restore files and folders, each photo to a file of its own."""
    options = options_of(parsed)  # rejects bad values before anything is loaded
    left_out: list[LeftOut] = []
    tasks = output_paths.plan(
        parsed.photos,
        parsed.output,
        mark=options.size_mark,
        image_format=parsed.format,
        left_out=left_out,
        sequences=sequences(parsed),
    )
    if tasks and not tasks[0].forms:
        options = replace(options, format=_format_of_output(parsed.output, parsed.format))
    mask = _read_mask(parsed, tasks)
    from .. import pipeline  # numpy and the decoders, which --help and a wrong path do not need

    restorer = pipeline.Restorer(
        weights=parsed.weights_dir,
        device=parsed.device,
        half=False if parsed.fp32 else None,
        limits=limits(parsed.max_megapixels),
        **vars(options),
    )
    restorer.model(restorer.options)  # an unknown model is wrong usage, not a failure of each photo
    counts = print_left_out(left_out)
    if not tasks and not counts["failed"]:
        raise InvalidOption("no photos found")
    start = time.perf_counter()
    originals = {task.source.resolve() for task in tasks}
    skip_reason = partial(output_paths.skip_reason, overwrite=parsed.overwrite, originals=originals)
    counts += _restore_all(_Settings(restorer, skip_reason, mask, parsed.mask_out, parsed.keep_times), tasks)
    print(f"{summarize(counts, 'restored', 'skipped')} in {time.perf_counter() - start:.1f} s")
    return 1 if counts["failed"] else 0


def _read_mask(parsed: argparse.Namespace, tasks: list[output_paths.OutputTask]) -> bytes | None:
    """Read --mask and check --mask-out. Raises InvalidOption."""
    mask, out = parsed.mask, parsed.mask_out
    if (mask or out) and len(tasks) != 1:
        raise InvalidOption(f"--mask and --mask-out are for one photo, not {len(tasks)}")
    if (mask or out) and any(tasks[0].sequences):
        raise InvalidOption("--mask and --mask-out are for one picture; omit --pages and --frames")
    if out:
        if not mask and parsed.repair == "off":
            raise InvalidOption("--mask-out needs --repair auto, --repair on or --mask")
        if out.suffix.lower() != ".png":
            raise InvalidOption(f"--mask-out is {out}; its name must end in .png")
        if out.exists() and not parsed.overwrite:
            raise InvalidOption(f"--mask-out {out} exists; remove it or add --overwrite")
        task = tasks[0]
        results = [task.path(form) for form in task.forms or ("",)]
        if out.resolve() in {path.resolve() for path in (task.source, *results, mask) if path}:
            raise InvalidOption(f"--mask-out {out} is a photo, its result or its mask; name another file")
    try:
        return mask.read_bytes() if mask else None
    except OSError as error:
        raise InvalidOption(f"--mask {mask} cannot be read: {error.strerror or error}") from error


def _format_of_output(output: Path, chosen: str) -> str:
    image_format = file_types.format_of(output)
    if chosen not in ("same", image_format):
        raise InvalidOption(f"{output} is not a {chosen} file name; rename it or omit --format")
    return image_format or chosen


def _restore_all(settings: _Settings, tasks: list[output_paths.OutputTask]) -> Counter[str]:
    """Restore each photo, print a line for it, and count the outcomes. Raises DiskFull before the first."""
    from tqdm import tqdm

    pending = [task for task in tasks if not _skip(task, settings.skip_reason)]
    remaining = _writable(pending)
    counts = Counter(skipped=len(tasks) - len(pending), failed=len(pending) - len(remaining))
    if not remaining:
        return counts
    # Path.is_file() raises in a folder that cannot be searched
    existing = (task for task in remaining if os.path.isfile(task.source))
    sizes = ((task.target.parent, task.source, task.source.stat().st_size) for task in existing)
    output_paths.check_room(sizes, settings.restorer.options)
    # The bar counts photos and moves with each tile, so its ETA covers the whole run
    with tqdm(
        total=len(remaining), desc="Loading the model", bar_format=_BAR, leave=False, disable=None
    ) as bar:
        loaded = ""
        for index, task in enumerate(remaining):
            if (model := _load_for(settings.restorer, task.source)) not in ("", loaded):
                bar.write(model, file=sys.stderr)
                loaded = model
            if index == 0:
                bar.reset()  # keep loading out of the ETA
            bar.set_description_str(f"{index + 1}/{len(remaining)} {_shortened(task.source.name)}")

            def update(done: int, total: int, before: int = index) -> None:
                if total:  # 0 while a model is downloaded, which has a bar of its own
                    bar.n = before + done / total
                    bar.refresh()

            state, line = _restore_one(settings, task, update)
            counts[state] += 1
            bar.write(line, file=sys.stderr if state == "failed" else sys.stdout)
            bar.n = index + 1
    return counts


def _load_for(restorer: "Restorer", file: Path) -> str:
    """Load the model for a photo; return its name and backend, or "" where the photo cannot be read."""
    from ..images import photo

    try:
        size = photo.size(file.read_bytes(), max_pixels=restorer.limits.input_pixels)
        options = restorer.options.sized(*size)
    except (RestoreError, OSError):
        return ""  # reported when the photo is restored
    pixels = size.width * size.height
    model = restorer.load(pixels, **vars(options)).model(options, pixels)
    engine = restorer.networks.loaded_upscaler(model)
    return f"using {model.name} ({engine.source}) on {engine.name}" if engine else ""


def _skip(task: output_paths.OutputTask, skip_reason: Callable[[Path], str]) -> bool:
    existing = task.existing()
    reason = skip_reason(existing) if existing else ""
    if reason:
        print(f"{task.source}: skipped, {reason}")
    return bool(reason)


def _writable(tasks: list[output_paths.OutputTask]) -> list[output_paths.OutputTask]:
    """Return the tasks whose results can be written; print why the others cannot."""
    problems, writable = output_paths.unwritable(tasks), []
    for task in tasks:
        if path := next((path for path in (task.target.parent, task.existing()) if path in problems), None):
            print(f"{task.source}: failed, {path} cannot be written: {problems[path]}", file=sys.stderr)
        else:
            writable.append(task)
    return writable


def _restore_one(
    settings: _Settings, task: output_paths.OutputTask, progress: Progress
) -> tuple[Literal["restored", "skipped", "failed"], str]:
    """Restore one photo, or all of its pages that do not exist; return its state and the lines to print."""
    from ..sequences import restore

    lines: list[str] = []

    def skipped(target: Path | None) -> bool:
        reason = settings.skip_reason(target) if target else ""
        if reason:
            lines.insert(0, f"{task.source}: skipped, {reason}")
        return bool(reason)

    try:
        data, state = task.source.read_bytes(), "skipped"
        for number, result in restore(
            settings.restorer,
            data,
            task.sequences,
            mask=settings.mask,
            progress=progress,
            skip=lambda number: skipped(task.existing(number)),
        ):
            target = task.path(result.format, number)
            # Another process may have written it, or the photo's format is not the one its name says
            if skipped(target):
                continue
            if problem := _write(settings, result, task.source, target):
                return "failed", problem
            size = f"{result.width} x {result.height}"
            notes = "".join(f"; {warning}" for warning in result.warnings)
            if result.repair and result.repair.mask.any():
                notes = f"; {100 * result.repair.share:.2f} % repaired{notes}"
            line = f"{task.source} -> {target}: {size}, {result.model}, {result.seconds:.1f} s{notes}"
            lines.insert(0, line)
            state = "restored"
        return state, "\n".join(lines)
    except ImageTooLarge as error:
        hint = "; --max-megapixels changes it" if "megapixels" in str(error) else ""
        return "failed", f"{task.source}: failed, {error}{hint}"
    except RestoreError as error:
        return "failed", f"{task.source}: failed, {error}"
    except OSError as error:
        return "failed", f"{task.source}: failed, {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  one photo must not stop the others
        traceback.print_exc()
        return "failed", f"{task.source}: failed, {type(error).__name__}: {error}"


def _write(settings: _Settings, result: "Result", source: Path, target: Path) -> str:
    """Write a result, and its mask if there is a file for it; return the line to print if that fails."""
    written = target
    try:
        write_atomic(target, result.data)
        if settings.keep_times:
            copy_times(source, target)
        if settings.mask_out and result.repair:
            from ..repair.pipeline import mask_png

            written = settings.mask_out
            write_atomic(written, mask_png(result.repair.mask))
    except OSError as error:
        return f"{source}: failed, {written} cannot be written: {error.strerror or error}"
    return ""


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3] + "..."
