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


def result_stem(stem: str, outscale: float) -> str:
    """A result's name without its ending: "holiday" at 4 becomes "holiday_4x"."""
    return f"{stem}_{outscale:g}x"


def skip_reason(target: Path, *, overwrite: bool, originals: set[Path]) -> str:
    """Return why an existing file must stay as it is, "" where there is none or it may be replaced."""
    if not exists(target):
        return ""
    if target.resolve() in originals:
        return f"{target} is one of the photos"
    return "" if overwrite else f"{target} exists (use --overwrite to restore it again)"


def plan(
    photos: Sequence[Path], output: Path | None, *, outscale: float = 1, mark: str = "", form: str = "same"
) -> list[OutputTask]:
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
                    f"{output} ends with {output.suffix}, which is not written; use {written_suffixes()}"
                )
        elif exists(output) or format_of(output):
            raise InvalidOption(f"{output} is a file: several photos need a folder after -o")
    return _named(list(_sources(photos, output)), mark or result_stem("", outscale), form)


def _to_file(photo: Path, output: Path) -> OutputTask:
    if photo.resolve() == output.resolve():
        raise InvalidOption(f"{output} is the photo itself: give another name, or a folder, after -o")
    return OutputTask(photo, output)


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
        if hidden or path.suffix.lower() not in FORMAT_OF or not os.path.isfile(path):
            continue
        if not any(path.resolve().is_relative_to(results) for results in inside):
            yield path


def _named(sources: list[tuple[Path, Path]], mark: str, form: str) -> list[OutputTask]:
    """Targets no two of which are the same: "a_4x", for a.jpg and a.png "a_jpg_4x" and "a_png_4x"."""
    targets = unique_names([folder / source.name for source, folder in sources], mark)
    return [
        OutputTask(source, target, result_formats(source, form))
        for (source, _), target in zip(sources, targets, strict=True)
    ]


def unique_names(photos: Sequence[AnyPath], mark: str, others: Iterable[AnyPath] = ()) -> list[AnyPath]:
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


def _key(path: PurePath) -> str:
    """Equal for two paths that some file system takes for one: A and a, composed and decomposed accents."""
    whole = path.resolve() if isinstance(path, Path) else path
    return unicodedata.normalize("NFC", str(whole)).casefold()
