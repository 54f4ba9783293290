"""Validate XMP packets when they are read, and update them when they are written (ISO 16684-1)."""

from collections.abc import Callable, Iterator
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from ...version import SOFTWARE
from ..placement import Placement
from . import xmp_geometry, xmp_tree
from .metadata import C2PA
from .xmp_tree import Edit, Node

MAX_SIZE = 2 << 20  # bytes: update() visits every element
# Embedded images, and the digest that announces an extended packet, which is not kept
_ALWAYS_REMOVED = ("thumbnails", "hasextendedxmp")
# What properties whose names start so announce beside the picture; none of it is kept
_COMPANIONS = {
    "hdrgm:": "gain map",
    "HDRGainMap:": "gain map",
    "GCamera:Motion": "motion photo",
    "GCamera:MicroVideo": "motion photo",
    "Container:": "container directory",
    "Item:": "container directory",
    "GDepth:": "depth map",
    "GFocus:": "depth map",
    "Device:": "depth map",
    "apdi:": "depth map",
    "GImage:": "second picture in XMP",
    "GAudio:": "sound",
    "dcterms:provenance": C2PA.kind,
    "xmpNote:HasExtendedXMP": "extended XMP",
}
_RDF, _MANAGEMENT = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://ns.adobe.com/xap/1.0/mm/"
_EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
_SEMANTICS = {"GainMap": "gain map", "MotionPhoto": "motion photo", "Depth": "depth map"}


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


def contents(packet: bytes) -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of every property, and of every companion that the packet announces."""
    if not packet:
        return
    document = xmp_tree.parse(packet)
    for node in xmp_tree.walk(document):
        if node.name == "Item:Semantic" and (kind := _SEMANTICS.get(xmp_tree.text(packet, node))):
            yield kind, ""
        elif _local(node.name).startswith("thumbnails"):
            yield "thumbnail", ""
    for node in xmp_tree.properties(document):
        if kind := _companion(node.name):
            yield kind, ""
        elif not _local(node.name).startswith(_ALWAYS_REMOVED):
            yield "XMP", node.name


def remove(packet: bytes, unwanted: Callable[[str], bool]) -> bytes:
    """Remove the elements and attributes with unwanted names."""
    if not packet:
        return b""
    nodes = xmp_tree.walk(xmp_tree.parse(packet))
    return xmp_tree.edited(packet, [xmp_tree.removal(node) for node in nodes if unwanted(node.name)])


def update(packet: bytes, width: int, height: int, placement: Placement, *, history: str = "") -> bytes:
    """Transform what counts in pixels; remove thumbnails and what announces companions that are not kept.

    width, height  of the result
    history        a line on how it was produced, added to xmpMM:History
    """
    if not packet:
        return b""
    document = xmp_tree.parse(packet)
    edits: list[Edit] = []
    for node in xmp_tree.walk(document):
        if (
            _companion(node.name)
            or _local(node.name).startswith(_ALWAYS_REMOVED)
            or node.name in xmp_geometry.OPAQUE
        ):
            edits.append(xmp_tree.removal(node))
        else:
            edits += xmp_geometry.edits(packet, node, (width, height), placement)
    if history:
        edits += _history_entry(packet, document, history)
    return xmp_tree.edited(packet, edits)


def _local(name: str) -> str:
    return name.rpartition(":")[2].lower()


def _companion(name: str) -> str:
    return next((text for start, text in _COMPANIONS.items() if name.startswith(start)), "")


def _history_entry(packet: bytes, document: Node, history: str) -> Iterator[Edit]:
    rdf, agent, parameters = (quoteattr(text) for text in (_RDF, SOFTWARE, history))
    entry = (
        f"<rdf:li xmlns:rdf={rdf} xmlns:stEvt={quoteattr(_EVENT)} "
        f'stEvt:action="edited" stEvt:softwareAgent={agent} stEvt:parameters={parameters}/>'
    )
    nodes = {node.name: node for node in reversed([*xmp_tree.walk(document)])}  # the first of each name
    end: int | None = None
    if earlier := nodes.get("xmpMM:History"):
        sequences = (child.value for child in earlier.children if child.name == "rdf:Seq" and child.value)
        end = next((value[1] for value in sequences), None)
    elif (root := nodes.get("rdf:RDF")) and root.value:
        end = root.value[1]
        about = packet[slice(*nodes["rdf:about"].span)].decode() if "rdf:about" in nodes else ' rdf:about=""'
        entry = (
            f"<rdf:Description xmlns:rdf={rdf} xmlns:xmpMM={quoteattr(_MANAGEMENT)}{about}>"
            f"<xmpMM:History><rdf:Seq>{entry}</rdf:Seq></xmpMM:History></rdf:Description>"
        )
    if end is not None:
        yield end, end, entry.encode()
