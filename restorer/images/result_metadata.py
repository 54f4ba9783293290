"""Update the metadata of a photo for its result, and name what the result lacks."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..options import Options
from ..version import SOFTWARE
from .formats import exif, jpeg, metadata, photoshop, xmp
from .formats.exif import Block
from .formats.metadata import THUMBNAIL, Item, RawMetadata
from .inventory import inventory, missing
from .photo import Photo
from .placement import Placement, placement
from .privacy import remove_places

_HISTORY = Item("history line of this restoration")
# Fields of RawMetadata for which a format has no place
_NOT_STORED = {"jpeg": ("text",), "png": (), "tiff": ("comment", "text")}
_NOT_STORED["gif"] = ("exif", "xmp", "iptc", "resources", "text")
_NOT_STORED |= dict.fromkeys(("webp", "avif", "jxl"), ("iptc", "resources", "comment", "text"))
_MAX_SIZES = {"jpeg": jpeg.MAX_SIZES}
_UNLIMITED = 1 << 32
_RESOLUTION_IN_EXIF = ("webp", "avif", "tiff", "jxl")


def update(
    photo: Photo,
    image_format: str,
    thumbnail: Callable[[], bytes],
    options: Options,
    history: str,
) -> tuple[RawMetadata, tuple[str, ...]]:
    """Return the metadata for the file of a result, and warnings about items that it lacks.

    thumbnail  computes a JPEG file of the result, if the photo had one
    options    keep_metadata, remove_gps and dpi are used
    history    an ASCII line on how the image was produced, "" for none; not stored without keep_metadata
    """
    meta, size = photo.meta, (photo.width, photo.height)
    source = meta.metadata if options.keep_metadata else RawMetadata(icc=meta.metadata.icc)
    source = remove_places(source) if options.remove_gps else source
    source = replace(source, dpi=(options.dpi, options.dpi)) if options.dpi else source
    history = history if options.keep_metadata else ""
    before = inventory(source) | ({_HISTORY} if history else frozenset())
    moved = placement(meta.orientation, meta.stored, size) if meta.stored else Placement()
    resolution = source.dpi and moved.fractions.pair(*source.dpi)
    limits = _MAX_SIZES.get(image_format, {})
    # The other formats store the resolution outside EXIF: it alone needs no EXIF block
    in_exif = source.exif or history or image_format in _RESOLUTION_IN_EXIF
    block, added = _fitting_exif(
        partial(
            metadata.update_exif,
            source.exif,
            resolution if in_exif else None,
            width=photo.width,
            height=photo.height,
            placement=moved,
            software=SOFTWARE if history else "",
            geotiff_tags=image_format == "tiff",
        ),
        history,
        thumbnail() if THUMBNAIL in before and image_format == "jpeg" else b"",
        limits.get("exif", _UNLIMITED),
    )
    packets = (xmp.update(source.xmp, *size, moved, history=line) for line in (history, ""))
    blocks = replace(
        source,
        dpi=resolution,
        exif=block,
        xmp=next((packet for packet in packets if len(packet) <= limits.get("xmp", _UNLIMITED)), b""),
        resources=photoshop.transform(source.resources, moved),
        others=added,
    )
    unfit = (name for name, limit in limits.items() if len(getattr(blocks, name)) > limit)
    blocks = replace(blocks, **dict.fromkeys((*_NOT_STORED[image_format], *unfit), b""))
    return blocks, missing(before, inventory(blocks))


def _fitting_exif(
    update: Callable[..., Block], history: str, thumbnail: bytes, limit: int
) -> tuple[bytes, tuple[Item, ...]]:
    """Return a block of at most `limit` bytes, and which of our own additions it has.

    What is worth least goes first: the thumbnail, the history line, the maker note, then the largest tags.
    """
    full = update(history=history)
    attempts = [(full, thumbnail, (THUMBNAIL, _HISTORY) if thumbnail else (_HISTORY,))]
    attempts += [(full, b"", (_HISTORY,)), (update(), b"", ())]
    for block, picture, added in attempts:
        data = exif.serialize(block.order, block.tags, picture)
        if len(data) <= limit:
            return data, added
    return metadata.shortened(update(), limit), ()
