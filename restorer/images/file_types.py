"""File types by file name; what a file holds is seen when it is opened."""

from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from ..options import FORMATS

# By what a name ends with; what a file really holds is seen when it is opened
SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "png": (".png",),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "avif": (".avif", ".avifs"),
    "heif": (".heic", ".heif", ".hif"),
}
FORMAT_OF = {suffix: form for form, suffixes in SUFFIXES.items() for suffix in suffixes}
_WRITTEN = FORMATS[1:]
AnyPath = TypeVar("AnyPath", bound=PurePath)
# What "same" may make of a format that is only read, as encode.output_format does
WRITTEN_INSTEAD = {"bmp": ("png",), "gif": ("png",), "heif": ("jpeg", "png")}


def suffixed(path: AnyPath, form: str) -> AnyPath:
    """`path` with a format's usual ending added."""
    return path.with_name(path.name + SUFFIXES[form][0])


def format_of(path: Path) -> str | None:
    """The format that a file name's ending announces, None for one that is not written."""
    form = FORMAT_OF.get(path.suffix.lower())
    return form if form in _WRITTEN else None


def is_photo(path: str) -> bool:
    """Whether a file's name ends like one of a photo that is read."""
    return PurePosixPath(path).suffix.lower() in FORMAT_OF


def result_formats(source: Path, form: str) -> tuple[str, ...]:
    if form != "same":
        return (form,)
    own = FORMAT_OF.get(source.suffix.lower())
    return _WRITTEN if own is None else WRITTEN_INSTEAD.get(own, (own,))


def written_suffixes() -> str:
    return ", ".join(SUFFIXES[form][0] for form in _WRITTEN)
