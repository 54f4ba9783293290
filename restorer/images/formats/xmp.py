"""XMP packets: checked when they are read, corrected for the new picture (ISO 16684-1)."""

import re
from collections.abc import Callable
from xml.parsers import expat

_TAG = re.compile(rb"<(?:[^>\"']|\"[^\"]*\"|'[^']*')*>")
_ATTRIBUTE = re.compile(rb"\s([\w.:-]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
LARGEST = 2 << 20  # bytes: what is left out of a packet is looked for element by element
# Embedded pictures, and the digest that announces a further packet, which is not carried
_NEVER_CARRIED = ("thumbnails", "hasextendedxmp")


def read(packet: bytes, warnings: list[str]) -> bytes:
    """A packet, b"" for none; one that is not XML in UTF-8 is left out, and said in `warnings`."""
    packet = packet.strip(b"\0 \t\r\n")
    if not packet:
        return b""
    if len(packet) > LARGEST:
        warnings.append("the XMP block is far too large and was left out")
        return b""
    try:
        if b"<!DOCTYPE" in packet:  # XMP has none; entities that unfold without end need one
            raise ValueError("a document type")
        packet.decode()
        expat.ParserCreate("utf-8").Parse(packet, True)
    except (ValueError, expat.ExpatError):
        warnings.append("the XMP block is damaged and was left out")
        return b""
    return packet


def update(packet: bytes, *, width: int, height: int, remove_gps: bool) -> bytes:
    """A packet with size and orientation of the new picture, and no embedded thumbnails."""
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
    unwanted = (*_NEVER_CARRIED, "gps") if remove_gps else _NEVER_CARRIED
    return _without(packet, lambda name: name.rpartition(":")[2].lower().startswith(unwanted))


def _without(packet: bytes, unwanted: Callable[[str], bool]) -> bytes:
    """A packet without the elements and attributes of unwanted names.

    The parser says where elements are: a pattern alone would take what stands in a comment for one, and
    could be made to run for hours.
    """
    parser = expat.ParserCreate("utf-8")
    cuts: list[tuple[int, int]] = []
    inside: list[int] = []  # where the unwanted elements around this place begin

    def begin(name: str, attributes: dict[str, str]) -> None:
        at = parser.CurrentByteIndex
        if inside or unwanted(name):
            inside.append(at)
        elif any(map(unwanted, attributes)) and (tag := _TAG.match(packet, at)):
            found = _ATTRIBUTE.finditer(packet, at, tag.end())
            cuts.extend(each.span() for each in found if unwanted(each[1].decode()))

    def end(_name: str) -> None:
        if not inside:
            return
        at = inside.pop()
        if not inside:
            tag = _TAG.match(packet, at)
            last = (
                tag.end()
                if tag and tag[0].endswith(b"/>")
                else packet.index(b">", parser.CurrentByteIndex) + 1
            )
            cuts.append((at, last))

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.Parse(packet, True)
    starts, stops = (0, *(stop for _, stop in cuts)), (*(start for start, _ in cuts), len(packet))
    return b"".join(packet[start:stop] for start, stop in zip(starts, stops, strict=True))
