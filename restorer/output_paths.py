"""Choose where the result of each photo is written."""

import errno
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePath

from . import atomic, folders
from .errors import DiskFull, InvalidOption
from .folders import LeftOut
from .images.file_types import (
    LONGEST_SUFFIX,
    AnyPath,
    format_of,
    is_photo,
    result_formats,
    suffixed,
    written_suffixes,
)
from .options import FIRST, Options, Sequences

_MAX_NAME = 255  # bytes of a file name, in every usual file system
# Least bytes of a result for each byte of a compressed photo and the square of the scale, with the default
# quality: measured from 0.05 (WebP of a noisy PNG)
_LEAST = 0.04
_UNCOMPRESSED = ("tiff", "bmp")  # may be


@dataclass(frozen=True)
class OutputTask:
    """One photo to restore.

    target     output path, without a suffix if `forms` is not empty
    forms      formats that the result may have, whose suffix is added to `target`; empty if it is complete
    sequences  what else may be restored of a file with several pictures
    """

    source: Path
    target: Path
    forms: tuple[str, ...] = ()
    sequences: Sequences = FIRST

    def path(self, image_format: str, number: int = 0) -> Path:
        """Return the path of a result in that format, of a page from 1 on or of the only one."""
        if self.forms:
            return suffixed(numbered(self.target, number), image_format)
        base = numbered(self.target.with_suffix(""), number)
        return base.with_name(base.name + self.target.suffix)

    def existing(self, page: int = 1) -> Path | None:
        """Return the existing output of a page, if any; the first page is written last."""
        numbers = ([0] if page == 1 else []) + ([page] if self.sequences.pages else [])
        paths = [self.path(form, number) for number in numbers for form in self.forms or ("",)]
        return next((path for path in paths if os.path.exists(path)), None)


def numbered(path: AnyPath, number: int) -> AnyPath:
    """Return the path, without suffix, of the result of a page: "scan_4x_p2"; the path itself for 0."""
    return path.with_name(f"{path.name}_p{number}") if number else path


def skip_reason(target: Path, *, overwrite: bool, originals: set[Path]) -> str:
    """Return why an existing file must not be replaced; "" if there is none or it may be."""
    if not os.path.exists(target):  # Path.exists() raises without permission
        return ""
    if target.resolve() in originals:
        return f"{target} is one of the photos"
    return "" if overwrite else f"{target} exists (use --overwrite to restore it again)"


def plan(
    photos: Sequence[Path],
    output: Path | None,
    *,
    mark: str,
    image_format: str = "same",
    left_out: list[LeftOut] | None = None,
    sequences: Sequences = FIRST,
) -> list[OutputTask]:
    """Return a task for each photo in `photos` (files and folders), with distinct targets.

    output        a folder, which gets the same subfolders as the input; for a single photo also a file with a
                  known suffix; None writes beside each photo
    mark          added to the photo's name
    image_format  of the results, or "same"
    left_out      what is left out of the folders is added here
    sequences     what else is restored of files with several pictures

    A path that does not exist gets a task too, so that it fails like any other photo. Raises InvalidOption
    if the next run would take the results for photos, or if `output` is not valid.
    """
    for photo in photos:
        if os.path.isdir(photo) and (output is None or output.resolve() == photo.resolve()):
            raise InvalidOption(f"{photo} is a folder; name another folder for its results with -o")
    if output is not None and not os.path.isdir(output):
        if len(photos) == 1 and not os.path.isdir(photos[0]):
            if format_of(output):
                return [_to_file(photos[0], output, sequences)]
            suffixes = {photos[0].suffix.lower(), output.suffix.lower()}
            if sequences.frames and image_format == "same" and suffixes == {".gif"}:
                raise InvalidOption(
                    f"{output}: name a folder with -o; an animation in GIF becomes a GIF there"
                )
            if output.suffix:
                raise InvalidOption(
                    f"{output}: cannot write {output.suffix} files; use {written_suffixes()}; "
                    "to write into a folder of that name, create it first"
                )
        elif os.path.exists(output) or format_of(output):
            raise InvalidOption(f"{output} is a file; name a folder with -o for several photos")
    pairs = list(sources(photos, output, [] if left_out is None else left_out))
    return _tasks(pairs, mark, image_format, sequences)


def _to_file(photo: Path, output: Path, sequences: Sequences) -> OutputTask:
    if photo.resolve() == output.resolve():
        raise InvalidOption(f"{output} is the photo itself; name another file or a folder with -o")
    return OutputTask(photo, output, sequences=sequences)


def sources(
    photos: Sequence[Path], output: Path | None, left_out: list[LeftOut]
) -> Iterator[tuple[Path, Path]]:
    """Yield each photo once, with the folder for its result; subfolders are mirrored.

    A link in a folder is a photo of its own; one that is named beside its photo is left out.
    """
    places: set[Path] = set()
    first: dict[Path, Path] = {}  # name of each file, links resolved
    for path in photos:
        is_folder = os.path.isdir(path)
        for source in _photos_in(path, output, left_out) if is_folder else [path]:
            place, real = source.parent.resolve() / source.name, source.resolve()
            if place in places:
                continue
            places.add(place)
            if not is_folder and real in first:
                left_out.append(LeftOut(str(source), f"the same file as {first[real]}"))
                continue
            first.setdefault(real, source)
            if output is None:
                yield source, source.parent
            else:
                yield source, output / source.parent.relative_to(path) if is_folder else output


def _photos_in(folder: Path, output: Path | None, left_out: list[LeftOut]) -> Iterator[Path]:
    """Yield the photos in a folder, except hidden ones and results in an output folder inside it."""
    for entry in folders.files(folder, left_out, exclude=output or ""):
        if is_photo(entry.name):
            yield Path(entry.path)
        else:
            left_out.append(LeftOut(entry.path, folders.NOT_A_PHOTO))


def _tasks(
    sources: list[tuple[Path, Path]], mark: str, image_format: str, sequences: Sequences
) -> list[OutputTask]:
    """Return tasks with distinct targets: "a_4x", or "a_jpg_4x" and "a_png_4x" for a.jpg and a.png."""
    targets = unique_names([folder / source.name for source, folder in sources], mark)
    animated = ("gif",) if sequences.frames and image_format == "same" else ()
    return [
        OutputTask(source, target, (*result_formats(source, image_format), *animated), sequences)
        for (source, _), target in zip(sources, targets, strict=True)
    ]


def unique_names(photos: Sequence[AnyPath], mark: str, others: Iterable[AnyPath] = ()) -> list[AnyPath]:
    """Return a distinct result path without suffix for each photo; names too long for a file are shortened.

    others  result paths of other photos, also without suffix
    """
    targets: list[AnyPath] = []
    wanted = Counter(_key(photo.with_name(photo.stem)) for photo in photos)
    taken = {_key(other) for other in others}
    for photo in photos:
        full = photo.name.replace(".", "_")
        stems = chain([(full, "")], ((full, f"_{number}") for number in count(2)))
        if wanted[_key(photo.with_name(photo.stem))] == 1:
            stems = chain([(photo.stem, "")], stems)
        free = (photo.with_name(_shortened(stem, number + mark) + number + mark) for stem, number in stems)
        target = next(target for target in free if _key(target) not in taken)
        taken.add(_key(target))
        targets.append(target)
    return targets


def _shortened(stem: str, end: str) -> str:
    """Return as much of a stem as a file name has room for before `end` and a suffix."""
    room = _MAX_NAME - len(os.fsencode(end)) - LONGEST_SUFFIX
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem


def unwritable(tasks: Sequence[OutputTask]) -> dict[Path, str]:
    """Return why results cannot be written, by their folder or path; checked by writing into the folders."""
    problems: dict[Path, str] = {}
    for folder in dict.fromkeys(task.target.parent for task in tasks):
        try:
            atomic.check_writable(folder)
        except OSError as error:
            problems[folder] = error.strerror or str(error)
    paths = filter(None, (task.existing() for task in tasks))
    return problems | {path: os.strerror(errno.EISDIR) for path in paths if path.is_dir()}


def check_room(photos: Iterable[tuple[Path, Path, int]], options: Options) -> None:
    """Raise DiskFull if a disk surely has too little room; results of unknown least size do not count.

    photos  folder of the result, path of the photo, and its bytes
    """
    if options.max_bytes or options.quality < Options.quality:
        return
    scale = 1.0 if options.by_photo else options.outscale
    needed: Counter[Path] = Counter()
    disks: dict[int, Path] = {}
    existing: dict[Path, Path] = {}
    for folder, photo, size in photos:
        if format_of(photo) in _UNCOMPRESSED:
            continue
        if folder not in existing:
            present = atomic.nearest_existing(folder)
            existing[folder] = disks.setdefault(present.stat().st_dev, present)
        needed[existing[folder]] += int(size * scale**2 * _LEAST)
    for folder, size in needed.items():
        if size > (free := shutil.disk_usage(folder).free):
            raise DiskFull(
                f"the results need at least {size / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB left; "
                "free some space or choose another folder"
            )


def _key(path: PurePath) -> str:
    """Return a key that is equal for paths that a file system may treat as one: A and a, NFC and NFD."""
    full = path.resolve() if isinstance(path, Path) else path
    return unicodedata.normalize("NFC", str(full)).casefold()
