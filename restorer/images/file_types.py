"""Map file name suffixes to image formats. The actual format is detected when a file is opened."""

from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from ..options import FORMATS

SUFFIXES = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "png": (".png",),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "avif": (".avif", ".avifs"),
    "heif": (".heic", ".heif", ".hif"),
    "jxl": (".jxl",),
    "jp2": (".jp2", ".j2k", ".jpx", ".jpf", ".jph", ".j2c", ".jpc", ".jhc"),
}
FORMAT_OF = {suffix: image_format for image_format, suffixes in SUFFIXES.items() for suffix in suffixes}
_WRITTEN = FORMATS[1:]
LONGEST_SUFFIX = max(len(SUFFIXES[image_format][0]) for image_format in _WRITTEN)
AnyPath = TypeVar("AnyPath", bound=PurePath)
# Read-only formats, and what "same" writes in their stead; see encode.output_format
WRITTEN_INSTEAD = {"bmp": ("png",), "gif": ("png",), "jp2": ("png",), "heif": ("jpeg", "png")}


def suffixed(path: AnyPath, image_format: str) -> AnyPath:
    """Return `path` with the format's usual suffix appended."""
    return path.with_name(path.name + SUFFIXES[image_format][0])


def format_of(path: Path) -> str | None:
    """Return the output format that a file name's suffix stands for, or None if there is no writer."""
    image_format = FORMAT_OF.get(path.suffix.lower())
    return image_format if image_format in _WRITTEN else None


def is_photo(path: str) -> bool:
    """Return whether a file name has the suffix of a readable format."""
    return PurePosixPath(path).suffix.lower() in FORMAT_OF


def result_formats(source: Path, image_format: str) -> tuple[str, ...]:
    """Return the formats that a result of `source` may have, where `image_format` is a format or "same"."""
    if image_format != "same":
        return (image_format,)
    own = FORMAT_OF.get(source.suffix.lower())
    return _WRITTEN if own is None else WRITTEN_INSTEAD.get(own, (own,))


def written_suffixes() -> str:
    return ", ".join(SUFFIXES[image_format][0] for image_format in _WRITTEN)
