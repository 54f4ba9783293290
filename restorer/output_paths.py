"""Choose where the result of each photo is written."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePath

from .errors import InvalidOption
from .images.file_types import FORMAT_OF, AnyPath, format_of, result_formats, suffixed, written_suffixes


@dataclass(frozen=True)
class OutputTask:
    """One photo to restore.

    target  output path, without a suffix if `forms` is not empty
    forms   formats that the result may have; its suffix is added to `target`. Empty if `target` is complete
    """

    source: Path
    target: Path
    forms: tuple[str, ...] = ()

    def path(self, image_format: str) -> Path:
        """Return the path of a result in that format."""
        return suffixed(self.target, image_format) if self.forms else self.target

    def existing(self) -> Path | None:
        """Return the existing output, if any."""
        paths = map(self.path, self.forms) if self.forms else [self.target]
        return next((path for path in paths if exists(path)), None)


def exists(path: Path) -> bool:
    """Return whether a path exists; False without permission, which fails later, for that photo only."""
    return os.path.exists(path)


def result_stem(stem: str, outscale: float) -> str:
    """Return a result's name without suffix: "holiday" at 4 becomes "holiday_4x"."""
    return f"{stem}_{outscale:g}x"


def skip_reason(target: Path, *, overwrite: bool, originals: set[Path]) -> str:
    """Return why an existing file must not be replaced; "" if there is none or it may be."""
    if not exists(target):
        return ""
    if target.resolve() in originals:
        return f"{target} is one of the photos"
    return "" if overwrite else f"{target} exists (use --overwrite to restore it again)"


def plan(
    photos: Sequence[Path],
    output: Path | None,
    *,
    outscale: float = 1,
    mark: str = "",
    image_format: str = "same",
) -> list[OutputTask]:
    """Return a task for each photo in `photos` (files and folders), with distinct targets.

    output  a folder, which gets the same subfolders as the input; for a single photo also a file with a
            known suffix; None writes beside each photo
    mark    added to the photo's name; default: "_4x" for an outscale of 4
    form    format of the results, or "same"

    A path that does not exist gets a task too, so that it fails like any other photo. Raises InvalidOption
    if the next run would take the results for photos, or if `output` is not valid.
    """
    for photo in photos:
        if os.path.isdir(photo) and (output is None or output.resolve() == photo.resolve()):
            raise InvalidOption(f"{photo} is a folder; name another folder for its results with -o")
    if output is not None and not os.path.isdir(output):
        if len(photos) == 1 and not os.path.isdir(photos[0]):
            if format_of(output):
                return [_to_file(photos[0], output)]
            if output.suffix:
                raise InvalidOption(f"{output}: cannot write {output.suffix} files; use {written_suffixes()}")
        elif exists(output) or format_of(output):
            raise InvalidOption(f"{output} is a file; name a folder with -o for several photos")
    return _tasks(list(_sources(photos, output)), mark or result_stem("", outscale), image_format)


def _to_file(photo: Path, output: Path) -> OutputTask:
    if photo.resolve() == output.resolve():
        raise InvalidOption(f"{output} is the photo itself; name another file or a folder with -o")
    return OutputTask(photo, output)


def _sources(photos: Sequence[Path], output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield each photo once, with the folder for its result; subfolders are mirrored."""
    seen: set[Path] = set()
    for path in photos:
        is_folder = os.path.isdir(path)
        for source in sorted(_photos_in(path, output)) if is_folder else [path]:
            if (real := source.resolve()) in seen:
                continue
            seen.add(real)
            if output is None:
                yield source, source.parent
            else:
                yield source, output / source.parent.relative_to(path) if is_folder else output


def _photos_in(folder: Path, output: Path | None) -> Iterator[Path]:
    """Yield the photos in a folder, except hidden ones and results in an output folder inside it."""
    results = output.resolve() if output and output.resolve().is_relative_to(folder.resolve()) else None
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in FORMAT_OF or not os.path.isfile(path):
            continue
        if results is None or not path.resolve().is_relative_to(results):
            yield path


def _tasks(sources: list[tuple[Path, Path]], mark: str, image_format: str) -> list[OutputTask]:
    """Return tasks with distinct targets: "a_4x", or "a_jpg_4x" and "a_png_4x" for a.jpg and a.png."""
    targets = unique_names([folder / source.name for source, folder in sources], mark)
    return [
        OutputTask(source, target, result_formats(source, image_format))
        for (source, _), target in zip(sources, targets, strict=True)
    ]


def unique_names(photos: Sequence[AnyPath], mark: str, others: Iterable[AnyPath] = ()) -> list[AnyPath]:
    """Return a distinct result path without suffix for each photo.

    others  result paths of other photos, also without suffix
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


def _key(path: PurePath) -> str:
    """Return a key that is equal for paths that a file system may treat as one: A and a, NFC and NFD."""
    full = path.resolve() if isinstance(path, Path) else path
    return unicodedata.normalize("NFC", str(full)).casefold()
