"""Which photo goes to which file, and how a file appears: whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from .errors import InvalidOption

# By what a name ends with; what a file really holds is seen when it is opened
READABLE = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "png": (".png",),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "avif": (".avif", ".avifs"),
    "heif": (".heic", ".heif", ".hif"),
}
_FORMAT_OF = {suffix: form for form, suffixes in READABLE.items() for suffix in suffixes}
_WRITTEN = ("jpeg", "png", "webp", "tiff", "avif")


@dataclass(frozen=True)
class Task:
    """One photo to restore. `target` lacks its suffix where only the photo's format decides it."""

    source: Path
    target: Path
    complete: bool

    def existing(self) -> Path | None:
        """The output that is already there, if any."""
        if self.complete:
            return self.target if self.target.exists() else None
        candidates = (suffixed(self.target, form) for form in _WRITTEN)
        return next((path for path in candidates if path.exists()), None)

    def write(self, data: bytes, form: str) -> Path:
        """Store the result by an atomic rename; returns where."""
        path = self.target if self.complete else suffixed(self.target, form)
        write_atomic(path, data)
        return path


def suffixed(path: Path, form: str) -> Path:
    """`path` with a format's usual ending added."""
    return path.with_name(path.name + READABLE[form][0])


def result_stem(stem: str, outscale: float) -> str:
    """A result's name without its ending: "holiday" at 4 becomes "holiday_4x"."""
    return f"{stem}_{outscale:g}x"


def format_of(path: Path) -> str | None:
    """The format that a file name's ending announces, None for one that is not written."""
    form = _FORMAT_OF.get(path.suffix.lower())
    return form if form in _WRITTEN else None


def plan(photos: Sequence[Path], output: Path | None, *, outscale: float) -> list[Task]:
    """One Task for each photo in `photos` (files and folders), no two with the same target.

    output  a folder, below which the folders' own structure is kept; or, for a single photo, a file
            with a known ending; or None: beside each photo

    A path that does not exist gets a Task, so that its failure is told like any other's.
    Raises InvalidOption for a folder without `output`: its results would be the next run's photos.
    """
    if output is None and any(photo.is_dir() for photo in photos):
        raise InvalidOption("a folder of photos needs an output folder: give one with -o")
    if output is not None and len(photos) == 1 and not photos[0].is_dir() and not output.is_dir():
        if format_of(output):
            return [Task(photos[0], output, complete=True)]
        if output.suffix:
            raise InvalidOption(f"{output} ends with {output.suffix}, which is not written; use {_endings()}")
    tasks: list[Task] = []
    taken: set[str] = set()
    for source, place in _sources(photos, output):
        folder = source.parent if output is None else output / place
        target = _free(folder, source, outscale, taken)
        tasks.append(Task(source, target, complete=False))
    return tasks


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it. Makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sources(photos: Sequence[Path], output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each photo once, with the folder it lies in below the folder that was named."""
    seen: set[Path] = set()
    own = None if output is None else output.resolve()
    for named in photos:
        found = sorted(_below(named)) if named.is_dir() else [named]
        for source in found:
            real = source.resolve()
            if real in seen or (named.is_dir() and own is not None and real.is_relative_to(own)):
                continue
            seen.add(real)
            yield source, source.parent.relative_to(named) if named.is_dir() else Path()


def _below(folder: Path) -> Iterator[Path]:
    return (
        p for p in folder.rglob("*") if p.suffix.lower() in _FORMAT_OF and p.is_file() and p.name[0] != "."
    )


def _free(folder: Path, source: Path, outscale: float, taken: set[str]) -> Path:
    """A target no earlier photo of this run has: "a_4x", else "a_jpg_4x", "a_jpg_2_4x" and so on."""
    full = source.name.replace(".", "_")
    for name in chain([source.stem, full], (f"{full}_{number}" for number in count(2))):
        target = folder / result_stem(name, outscale)
        key = str(target).casefold()  # some file systems take a_4x and A_4x for one
        if key not in taken:
            taken.add(key)
            return target
    raise AssertionError("count() never ends")


def _endings() -> str:
    return ", ".join(READABLE[form][0] for form in _WRITTEN)
