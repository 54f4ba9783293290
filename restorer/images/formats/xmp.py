"""Validate XMP packets when they are read, and update them when they are written (ISO 16684-1)."""

import re
from collections.abc import Callable
from xml.parsers import expat

_TAG = re.compile(rb"<(?:[^>\"']|\"[^\"]*\"|'[^']*')*>")
_ATTRIBUTE = re.compile(rb"\s([\w.:-]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
MAX_SIZE = 2 << 20  # bytes: update() visits every element
# Embedded images, and the digest that announces an extended packet, which is not kept
_ALWAYS_REMOVED = ("thumbnails", "hasextendedxmp")


def validate(packet: bytes, warnings: list[str]) -> bytes:
    """Return a packet without its padding; b"" if it is too large or no XML in UTF-8, with a warning."""
    packet = packet.strip(b"\0 \t\r\n")
    if not packet:
        return b""
    if len(packet) > MAX_SIZE:
        warnings.append(f"the XMP block is larger than {MAX_SIZE >> 20} MB and was left out")
        return b""
    try:
        if b"<!DOCTYPE" in packet:  # never part of XMP; entities that expand without end need one
            raise ValueError("a document type")
        packet.decode()
        expat.ParserCreate("utf-8").Parse(packet, True)
    except (ValueError, expat.ExpatError):
        warnings.append("the XMP block is damaged and was left out")
        return b""
    return packet


def update(packet: bytes, *, width: int, height: int, remove_gps: bool) -> bytes:
    """Set the size, in pixels, and an upright orientation; remove thumbnails and, if requested, GPS."""
    if not packet:
        return b""
    for names, value in (
        (rb"tiff:Orientation", 1),
        (rb"tiff:ImageWidth|exif:PixelXDimension", width),
        (rb"tiff:ImageLength|exif:PixelYDimension", height),
    ):
        number = rb"\g<1>%d" % value
        packet = re.sub(rb"(\s(?:%s)\s*=\s*[\"'])\d+" % names, number, packet)
        packet = re.sub(rb"(<(?:%s)\s*>\s*)\d+" % names, number, packet)
    prefixes = (*_ALWAYS_REMOVED, "gps") if remove_gps else _ALWAYS_REMOVED
    return _remove(packet, lambda name: name.rpartition(":")[2].lower().startswith(prefixes))


def _remove(packet: bytes, unwanted: Callable[[str], bool]) -> bytes:
    """Remove the elements and attributes with unwanted names.

    The parser locates the elements: a regular expression alone would match inside comments, and could
    take exponential time.
    """
    parser = expat.ParserCreate("utf-8")
    cuts: list[tuple[int, int]] = []
    open_elements: list[int] = []  # offsets of the unwanted element being removed and of those inside it

    def start_element(name: str, attributes: dict[str, str]) -> None:
        at = parser.CurrentByteIndex
        if open_elements or unwanted(name):
            open_elements.append(at)
        elif any(map(unwanted, attributes)) and (tag := _TAG.match(packet, at)):
            matches = _ATTRIBUTE.finditer(packet, at, tag.end())
            cuts.extend(match.span() for match in matches if unwanted(match[1].decode()))

    def end_element(_name: str) -> None:
        if not open_elements:
            return
        at = open_elements.pop()
        if open_elements:
            return
        tag, close = _TAG.match(packet, at), parser.CurrentByteIndex
        end = tag.end() if tag and tag[0].endswith(b"/>") else packet.index(b">", close) + 1
        cuts.append((at, end))

    parser.StartElementHandler, parser.EndElementHandler = start_element, end_element
    parser.Parse(packet, True)
    starts, stops = (0, *(stop for _, stop in cuts)), (*(start for start, _ in cuts), len(packet))
    return b"".join(packet[start:stop] for start, stop in zip(starts, stops, strict=True))
