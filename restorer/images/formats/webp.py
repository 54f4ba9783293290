"""List the chunks of a WebP file, which Pillow decodes."""

from collections.abc import Iterable

from .metadata import C2PA, Item

LOSSLESS = b"VP8L"
_MAX_CHUNKS = 100_000
_KNOWN = (LOSSLESS, b"VP8 ", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ")


def chunks(data: bytes) -> list[bytes]:
    """Return the names of the chunks of a file."""
    names, at = [], 12
    while at + 8 <= len(data) and len(names) < _MAX_CHUNKS:
        names.append(data[at : at + 4])
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return names


def others(names: Iterable[bytes]) -> tuple[Item, ...]:
    """Return what the chunks hold that no result can have."""
    unknown = dict.fromkeys(name for name in names if name not in _KNOWN)
    return tuple(
        C2PA if name == b"C2PA" else Item("WebP chunks", name.decode("ascii", "replace")) for name in unknown
    )
