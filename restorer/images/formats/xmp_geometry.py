"""Transform the properties of an XMP packet that count in pixels or in fractions of a side."""

import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

from ..placement import Box, Placement
from . import xmp_tree
from .xmp_tree import Edit, Node

# Pixel numbers in a form that is not documented well enough to be transformed
OPAQUE = ("drone-dji:DewarpData", "aas:CropX", "aas:CropY", "aas:CropW", "aas:CropH")
_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,30})?(/\d{1,12})?")
_SIDES = {"tiff:ImageWidth": 0, "exif:PixelXDimension": 0, "tiff:ImageLength": 1, "exif:PixelYDimension": 1}
_SUBJECT = ("exif:SubjectArea", "exif:SubjectLocation")
_RECTANGLE = "MPReg:Rectangle"  # a text of four fractions
_UNIT, _RADIUS, _VERTICES, *_CORNER = (
    f"Iptc4xmpExt:{name}" for name in ("rbUnit", "rbRx", "rbVertices", "rbX", "rbY")
)
_CIRCLES = {"stArea:d": "stArea:unit", _RADIUS: _UNIT}  # and what tells its unit
_LENGTH = "drone-dji:CalibratedFocalLength"


class _Rule(NamedTuple):
    """Properties of one node that belong together.

    form    "box": left, top, width, height; "centre": the same from the centre; "edges": left, top, right,
            bottom; "pair": lengths or densities along x and y
    names   of the properties; of a box, the latter two may be absent
    unit    the property that tells pixels from fractions; "" for `pixels`
    pixels  whether a rule without such a property counts in pixels
    frame   the properties with the size that the box is in, if not the picture's
    """

    form: Literal["box", "centre", "edges", "pair"]
    names: tuple[str, ...]
    unit: str = ""
    pixels: bool = False
    frame: tuple[str, ...] = ()


def _prefixed(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}:{name}" for name in names.split())


_PANORAMA = _prefixed("GPano", "FullPanoWidthPixels FullPanoHeightPixels")
_RULES = (
    _Rule("centre", _prefixed("stArea", "x y w h"), "stArea:unit"),
    _Rule("pair", _prefixed("stDim", "w h"), "stDim:unit", pixels=True),
    _Rule("box", _prefixed("Iptc4xmpExt", "rbX rbY rbW rbH"), "Iptc4xmpExt:rbUnit"),
    _Rule("edges", _prefixed("crs", "CropLeft CropTop CropRight CropBottom")),
    _Rule("pair", _prefixed("crs", "CropWidth CropHeight"), "crs:CropUnits", pixels=True),
    _Rule(
        "box",
        _prefixed(
            "GPano",
            "CroppedAreaLeftPixels CroppedAreaTopPixels CroppedAreaImageWidthPixels"
            " CroppedAreaImageHeightPixels",
        ),
        pixels=True,
        frame=_PANORAMA,
    ),
    _Rule(
        "box",
        _prefixed(
            "GPano",
            "LargestValidInteriorRectLeft LargestValidInteriorRectTop LargestValidInteriorRectWidth"
            " LargestValidInteriorRectHeight",
        ),
        pixels=True,
    ),
    _Rule("pair", _PANORAMA, pixels=True),
    _Rule("pair", _prefixed("exif", "FocalPlaneXResolution FocalPlaneYResolution"), pixels=True),
    _Rule("pair", _prefixed("tiff", "XResolution YResolution")),  # dots per inch stay
    _Rule("pair", _prefixed("stCamera", "ImageWidth ImageLength"), pixels=True),
    _Rule("centre", _prefixed("stCamera", "ImageXCenter ImageYCenter")),
    _Rule("centre", _prefixed("drone-dji", "CalibratedOpticalCenterX CalibratedOpticalCenterY"), pixels=True),
)


def edits(packet: bytes, node: Node, size: tuple[int, int], placement: Placement) -> Iterator[Edit]:
    """Yield the edits of one node.

    size  (width, height) of the result
    """
    text = xmp_tree.text(packet, node)
    if node.name in _SIDES and text.isdigit():
        yield xmp_tree.replacement(packet, node, str(size[_SIDES[node.name]]))
    elif node.name == "tiff:Orientation" and text.isdigit():
        yield xmp_tree.replacement(packet, node, "1")
    elif placement.changes_nothing:
        return
    elif node.name == _RECTANGLE:
        values = _numbers(text.split(","))
        if len(values) == 4:
            box = placement.fractions.box((values[0], values[1], values[2], values[3]))
            yield xmp_tree.replacement(packet, node, ", ".join(map(_decimal, box)))
    elif node.name == _LENGTH and (values := _numbers([text])):
        yield xmp_tree.replacement(packet, node, _decimal(values[0] * placement.scale_x))
    elif node.name in _SUBJECT:
        items = [item for sequence in node.children for item in sequence.children if item.name == "rdf:li"]
        values = _numbers(xmp_tree.text(packet, item) for item in items)
        if len(values) in (2, 3, 4):
            for item, value in zip(items, subject(values, placement), strict=True):
                yield xmp_tree.replacement(packet, item, str(round(value)))
    elif any(child.name == _VERTICES for child in node.children):
        # Before those of the corners themselves, which do not know their unit and are skipped
        yield from _polygon(packet, node, placement)
    elif node.children:
        fields = {child.name: child for child in node.children}
        for rule in _RULES:
            if rule.names[0] in fields and rule.names[1] in fields:
                yield from _apply(packet, rule, fields, placement)
        yield from _circle(packet, fields, placement)


def _circle(packet: bytes, fields: Mapping[str, Node], placement: Placement) -> Iterator[Edit]:
    """Scale the radius of an IPTC circle, in pixels or widths, and the diameter of an MWG one in pixels."""
    for name, unit in _CIRCLES.items():
        values = _numbers([xmp_tree.text(packet, fields[name])]) if name in fields else ()
        pixels = unit in fields and xmp_tree.text(packet, fields[unit]) == "pixel"
        factor = placement.scale_x if pixels else 1.0
        if name == _RADIUS and not pixels and placement.turned:
            factor = placement.width * placement.scale_x / (placement.height * placement.scale_y)
        if values and factor != 1:
            text = xmp_tree.text(packet, fields[name])
            yield xmp_tree.replacement(packet, fields[name], _like(text, values[0] * factor, whole=pixels))


def _polygon(packet: bytes, boundary: Node, placement: Placement) -> Iterator[Edit]:
    """Transform the corners of an IPTC polygon, whose unit stands beside them."""
    fields = {child.name: child for child in boundary.children}
    unit = xmp_tree.text(packet, fields[_UNIT]) if _UNIT in fields else ""
    pixels = unit == "pixel"
    items = [item for sequence in fields[_VERTICES].children for item in sequence.children]
    for node in (*items, *(child for item in items for child in item.children)):  # rdf:li, rdf:Description
        corner = [child for name in _CORNER for child in node.children if child.name == name]
        texts = [xmp_tree.text(packet, child) for child in corner]
        if len(values := _numbers(texts)) == len(_CORNER):
            moved = (placement if pixels else placement.fractions).box((*values, 0, 0))  # type: ignore[arg-type]
            for child, text, value in zip(corner, texts, moved, strict=False):
                yield xmp_tree.replacement(packet, child, _like(text, value, whole=pixels))


def subject(values: list[float], placement: Placement) -> list[float]:
    """Transform EXIF's SubjectArea: the centre, then nothing, a diameter, or width and height."""
    x, y, *size = values
    x, y, _, _ = placement.box((x, y, 0, 0))
    if len(size) == 1:
        return [x, y, size[0] * placement.scale_x]
    return [x, y, *(placement.pair(*size) if size else ())]


def _apply(packet: bytes, rule: _Rule, fields: Mapping[str, Node], placement: Placement) -> Iterator[Edit]:
    texts = {name: xmp_tree.text(packet, fields[name]) for name in rule.names if name in fields}
    numbers = _numbers(texts.values())
    if len(numbers) not in (2, len(rule.names)):
        return
    pixels = rule.pixels
    if unit := rule.unit in fields and xmp_tree.text(packet, fields[rule.unit]):
        pixels = unit.lower() in ("pixel", "pixels", "0")  # 0 in crs:CropUnits
    used = placement if pixels else placement.fractions
    if rule.frame:
        frame = _numbers(xmp_tree.text(packet, fields[name]) for name in rule.frame if name in fields)
        if len(frame) != 2:
            return
        used = used._replace(width=frame[0], height=frame[1])
    changed = used.pair(*numbers[:2]) if rule.form == "pair" else _moved(rule.form, numbers, used)
    for (name, text), old, new in zip(texts.items(), numbers, changed, strict=False):
        if abs(new - old) > 1e-9:
            yield xmp_tree.replacement(packet, fields[name], _like(text, new, whole=pixels))


def _moved(form: str, numbers: list[float], placement: Placement) -> Box:
    x, y, across, down = (*numbers, 0.0, 0.0)[:4]
    if form == "edges":
        across, down = across - x, down - y
    if form == "centre":
        x, y = x - across / 2, y - down / 2
    x, y, across, down = placement.box((x, y, across, down))
    if form == "edges":
        across, down = x + across, y + down
    if form == "centre":
        x, y = x + across / 2, y + down / 2
    return x, y, across, down


def _numbers(texts: Iterable[str]) -> list[float]:
    """Return decimal or rational numbers, none if one is neither."""
    texts = [text.strip() for text in texts]
    if not all(map(_NUMBER.fullmatch, texts)):  # other notations could take long to compute
        return []
    try:
        return [float(Fraction(text)) for text in texts]
    except ZeroDivisionError:
        return []


def _like(text: str, value: float, *, whole: bool) -> str:
    """Return the number in the notation of `text`; `whole` if one without a point stays without."""
    if "/" in text:
        ratio = Fraction(value).limit_denominator(10_000)
        return f"{ratio.numerator}/{ratio.denominator}"
    return str(round(value)) if whole and "." not in text else _decimal(value)


def _decimal(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") or "0"
