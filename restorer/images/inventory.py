"""List what a file holds beside its pixels, so that what a result lacks can be named."""

from collections.abc import Iterable, Iterator

from .formats import exif, geotiff, photoshop, png, xmp
from .formats.exif import Entry
from .formats.metadata import Item, RawMetadata, tag_name

_MAX_NAMES = 8  # in one warning


def inventory(blocks: RawMetadata) -> frozenset[Item]:
    """Return every item of these blocks, named alike whatever the format of the file."""
    return frozenset(Item(*item) for item in _items(blocks))


def _items(blocks: RawMetadata) -> Iterator[tuple[str, str]]:
    yield from _exif_items(blocks.exif)
    yield from xmp.contents(blocks.xmp)
    yield from (("IPTC", name) for name in photoshop.dataset_names(blocks.iptc))
    yield from (("Photoshop", name) for name in photoshop.resource_names(blocks.resources))
    yield from (("PNG text", keyword) for keyword in png.keywords(blocks.text))
    if blocks.comment:
        yield "comment", ""
    yield from blocks.others


def _exif_items(block: bytes) -> Iterator[tuple[str, str]]:
    if not block:
        return
    for tag, value in exif.parse(block).tags.items():
        if tag in geotiff.TAGS:
            yield "GeoTIFF", geotiff.TAGS[tag]
        elif isinstance(value, Entry):
            yield "EXIF", tag_name(tag)
        elif tag == exif.GPS:
            yield "EXIF", "GPS position"
        else:
            yield from (("EXIF", tag_name(nested)) for nested in value)


def missing(before: Iterable[Item], after: Iterable[Item]) -> tuple[str, ...]:
    """Return warnings, for the user, about the items that are not carried: one for each kind."""
    names: dict[str, list[str]] = {}
    for item in sorted(set(before) - set(after)):
        names.setdefault(item.kind, []).append(item.name)
    return tuple(_warning(kind, [name for name in group if name]) for kind, group in names.items())


def _warning(kind: str, names: list[str]) -> str:
    more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    listed = ", ".join([*names[:_MAX_NAMES], *more])
    return f"left out: {kind} ({listed})" if listed else f"left out: {kind}"
