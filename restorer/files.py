"""Which photo goes to which file, and how a file appears: whole or not at all."""

import errno
import os
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from .errors import InvalidOption
from .options import FORMATS

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
_WRITTEN = FORMATS[1:]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
AnyPath = TypeVar("AnyPath", bound=PurePath)
# What "same" may make of a format that is only read, as encode.output_format does
INSTEAD = {"bmp": ("png",), "gif": ("png",), "heif": ("jpeg", "png")}


@dataclass(frozen=True)
class Task:
    """One photo to restore.

    target  where to; without the ending where the result's format decides it
    forms   the formats the result may have, empty where `target` has its ending
    """

    source: Path
    target: Path
    forms: tuple[str, ...] = ()

    def path(self, form: str) -> Path:
        """Where a result of that format goes."""
        return suffixed(self.target, form) if self.forms else self.target

    def existing(self) -> Path | None:
        """The output that is already there, if any."""
        paths = map(self.path, self.forms) if self.forms else [self.target]
        return next((path for path in paths if exists(path)), None)


def exists(path: Path) -> bool:
    """As path.exists(), but False where even asking is refused: the error comes with the photo's own turn."""
    return os.path.exists(path)


def suffixed(path: AnyPath, form: str) -> AnyPath:
    """`path` with a format's usual ending added."""
    return path.with_name(path.name + READABLE[form][0])


def result_stem(stem: str, outscale: float) -> str:
    """A result's name without its ending: "holiday" at 4 becomes "holiday_4x"."""
    return f"{stem}_{outscale:g}x"


def format_of(path: Path) -> str | None:
    """The format that a file name's ending announces, None for one that is not written."""
    form = _FORMAT_OF.get(path.suffix.lower())
    return form if form in _WRITTEN else None


def plan(
    photos: Sequence[Path], output: Path | None, *, outscale: float = 1, mark: str = "", form: str = "same"
) -> list[Task]:
    """One Task for each photo in `photos` (files and folders), no two with the same target.

    output  a folder, below which the folders' own structure is kept; or, for a single photo, a file
            with a known ending; or None: beside each photo
    mark    what is added to a photo's name; left out it is "_4x" for an outscale of 4
    form    the format that is asked for, or "same"

    A path that does not exist gets a Task, so that its failure is told like any other's.
    Raises InvalidOption where results would be the next run's photos, or `output` cannot be meant.
    """
    for photo in photos:
        if os.path.isdir(photo) and (output is None or output.resolve() == photo.resolve()):
            raise InvalidOption(f"{photo} is a folder: give another folder for its results with -o")
    if output is not None and not os.path.isdir(output):
        if len(photos) == 1 and not os.path.isdir(photos[0]):
            if format_of(output):
                return [_to_file(photos[0], output)]
            if output.suffix:
                raise InvalidOption(
                    f"{output} ends with {output.suffix}, which is not written; use {_endings()}"
                )
        elif exists(output) or format_of(output):
            raise InvalidOption(f"{output} is a file: several photos need a folder after -o")
    return _named(list(_sources(photos, output)), mark or result_stem("", outscale), form)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees a part of it. Makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name without the bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def no_room(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more: it is full, beyond a quota, failing or read-only."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_part(name: str) -> bool:
    """Whether a file of that name is one that write_atomic() did not finish."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.part", name) is not None


def _to_file(photo: Path, output: Path) -> Task:
    if photo.resolve() == output.resolve():
        raise InvalidOption(f"{output} is the photo itself: give another name, or a folder, after -o")
    return Task(photo, output)


def _sources(photos: Sequence[Path], output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each photo once, with the folder its result goes to: as below the folder that was named."""
    seen: set[Path] = set()
    for named in photos:
        folder = os.path.isdir(named)
        for source in sorted(_below(named, output)) if folder else [named]:
            if (real := source.resolve()) in seen:
                continue
            seen.add(real)
            if output is None:
                yield source, source.parent
            else:
                yield source, output / source.parent.relative_to(named) if folder else output


def _below(folder: Path, output: Path | None) -> Iterator[Path]:
    """The photos in a folder, without hidden ones and without the results in an output folder inside it."""
    inside = [output.resolve()] if output and output.resolve().is_relative_to(folder.resolve()) else []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in _FORMAT_OF or not os.path.isfile(path):
            continue
        if not any(path.resolve().is_relative_to(results) for results in inside):
            yield path


def _named(sources: list[tuple[Path, Path]], mark: str, form: str) -> list[Task]:
    """Targets no two of which are the same: "a_4x", for a.jpg and a.png "a_jpg_4x" and "a_png_4x"."""
    targets = named([folder / source.name for source, folder in sources], mark)
    return [
        Task(source, target, _forms(source, form))
        for (source, _), target in zip(sources, targets, strict=True)
    ]


def named(photos: Sequence[AnyPath], mark: str, others: Iterable[AnyPath] = ()) -> list[AnyPath]:
    """For each photo's path one of a result, without an ending, no two the same.

    others  paths, without an ending too, that are results of other photos
    """
    targets: list[AnyPath] = []
    wanted = Counter(_key(photo.with_name(photo.stem)) for photo in photos)
    taken = {_key(other) for other in others}
    for photo in photos:
        full = photo.name.replace(".", "_")
        stems = chain([full], (f"{full}_{number}" for number in count(2)))
        if wanted[_key(photo.with_name(photo.stem))] == 1:
            stems = chain([photo.stem], stems)
        free = (photo.with_name(stem + mark) for stem in stems)
        target = next(target for target in free if _key(target) not in taken)
        taken.add(_key(target))
        targets.append(target)
    return targets


def is_photo(path: str) -> bool:
    """Whether a file's name ends like one of a photo that is read."""
    return PurePosixPath(path).suffix.lower() in _FORMAT_OF


def _key(path: PurePath) -> str:
    """Equal for two paths that some file system takes for one: A and a, composed and decomposed accents."""
    whole = path.resolve() if isinstance(path, Path) else path
    return unicodedata.normalize("NFC", str(whole)).casefold()


def _forms(source: Path, form: str) -> tuple[str, ...]:
    if form != "same":
        return (form,)
    own = _FORMAT_OF.get(source.suffix.lower())
    return _WRITTEN if own is None else INSTEAD.get(own, (own,))


def _endings() -> str:
    return ", ".join(READABLE[form][0] for form in _WRITTEN)
