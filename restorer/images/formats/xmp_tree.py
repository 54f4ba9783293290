"""Locate the properties of an XMP packet (ISO 16684-1) in its bytes, and edit them in place.

Written by hand because the parsers of the standard library do not write namespace prefixes, comments and
processing instructions as they were. expat finds the elements: a regular expression alone would match
inside comments, and could take exponential time.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

_TAG = re.compile(rb"<(?:[^>\"']|\"[^\"]*\"|'[^']*')*>")
_ATTRIBUTE = re.compile(rb"\s([\w.:-]+)\s*=\s*(\"[^\"]*\"|'[^']*')")
_ADOBE, _GOOGLE, _MICROSOFT = (
    "http://ns.adobe.com/",
    "http://ns.google.com/photos/",
    "http://ns.microsoft.com/",
)
# The usual prefixes, by which properties are named here whatever prefix a packet declares
_PREFIXES = {
    _ADOBE + "hdr-gain-map/1.0/": "hdrgm",
    _ADOBE + "camera-raw-settings/1.0/": "crs",
    _ADOBE + "photoshop/1.0/camera-profile": "stCamera",
    _ADOBE + "tiff/1.0/": "tiff",
    _ADOBE + "exif/1.0/": "exif",
    _ADOBE + "xap/1.0/mm/": "xmpMM",
    _ADOBE + "xap/1.0/sType/Dimensions#": "stDim",
    _ADOBE + "xmp/sType/Area#": "stArea",
    _ADOBE + "xmp/note/": "xmpNote",
    "http://ns.apple.com/HDRGainMap/1.0/": "HDRGainMap",
    "http://ns.apple.com/pixeldatainfo/1.0/": "apdi",
    "http://ns.apple.com/adjustment-settings/1.0/": "aas",
    _GOOGLE + "1.0/audio/": "GAudio",
    _GOOGLE + "1.0/camera/": "GCamera",
    _GOOGLE + "1.0/container/": "Container",
    _GOOGLE + "1.0/container/item/": "Item",
    _GOOGLE + "1.0/depthmap/": "GDepth",
    _GOOGLE + "1.0/image/": "GImage",
    _GOOGLE + "1.0/panorama/": "GPano",
    _GOOGLE + "dd/1.0/container/": "Container",
    _GOOGLE + "dd/1.0/item/": "Item",
    _GOOGLE + "dd/1.0/device/": "Device",
    _MICROSOFT + "photo/1.2/": "MP",
    _MICROSOFT + "photo/1.2/t/RegionInfo#": "MPRI",
    _MICROSOFT + "photo/1.2/t/Region#": "MPReg",
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/": "Iptc4xmpExt",
    "http://ns.acdsee.com/regions/": "acdsee-rs",
    "http://ns.acdsee.com/sType/Area#": "stArea",
    "http://ns.acdsee.com/sType/Dimensions#": "stDim",
    "http://www.dji.com/drone-dji/1.0/": "drone-dji",
    "http://www.metadataworkinggroup.com/schemas/regions/": "mwg-rs",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#": "rdf",
    "http://purl.org/dc/terms/": "dcterms",
}
_USUAL = frozenset(_PREFIXES.values())


@dataclass(slots=True)
class Node:
    """An element or attribute: its name with the usual prefix, and where it stands in the packet.

    span      from its start to its end, for an attribute with the space before it
    value     of its content; None for an element without a closing tag
    children  attributes and elements
    """

    name: str
    span: tuple[int, int]
    value: tuple[int, int] | None = None
    children: list["Node"] = field(default_factory=list)


Edit = tuple[int, int, bytes]  # the bytes from start to stop are replaced


def parse(packet: bytes) -> Node:
    """Return the document of a packet that validate() of xmp.py accepted; its name is ""."""
    parser = expat.ParserCreate("utf-8")
    document = Node("", (0, len(packet)), (0, len(packet)))
    stack, nodes = [document], [document]
    prefixes: dict[str, str] = {}

    def start(name: str, attributes: dict[str, str]) -> None:
        at = parser.CurrentByteIndex
        tag = _TAG.match(packet, at)
        end = tag.end() if tag else at
        node = Node(name, (at, end), (end, end))
        if tag and tag[0].endswith(b"/>"):
            node.value = None
        for match in _ATTRIBUTE.finditer(packet, at, end) if attributes else ():
            attribute = match[1].decode()
            if attribute.startswith("xmlns:"):
                prefix = attribute[6:]
                unknown = "other-" + prefix if prefix in _USUAL else prefix
                prefixes[prefix] = _PREFIXES.get(attributes.get(attribute, "").strip(), unknown)
            else:
                node.children.append(Node(attribute, match.span(), (match.start(2) + 1, match.end(2) - 1)))
        nodes.extend((node, *node.children))
        stack[-1].children.append(node)
        stack.append(node)

    def end(_name: str) -> None:
        node = stack.pop()
        if node.value is not None:
            close = parser.CurrentByteIndex
            node.value = (node.value[0], close)
            node.span = (node.span[0], packet.index(b">", close) + 1)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(packet, True)
    for node in nodes:
        prefix, colon, local = node.name.rpartition(":")
        node.name = prefixes.get(prefix, prefix) + colon + local
    return document


def walk(node: Node) -> Iterator[Node]:
    """Yield the node and everything in it, in the order of the packet."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(node.children))


def properties(document: Node) -> Iterator[Node]:
    """Yield the properties of the resource: what stands in the rdf:Description elements of rdf:RDF."""
    for root in walk(document):
        if root.name == "rdf:RDF":
            children = (child for description in root.children for child in description.children)
            yield from (child for child in children if not child.name.startswith(("rdf:", "xml")))
            return


def text(packet: bytes, node: Node) -> str:
    """Return the content of a node without child elements, "" for others."""
    if node.value is None or any(packet[child.span[0]] == ord("<") for child in node.children):
        return ""
    return packet[slice(*node.value)].decode().strip()


def replacement(packet: bytes, node: Node, value: str) -> Edit:
    """Return the edit that replaces the content, which is not empty, but not the space around it."""
    assert node.value
    old = packet[slice(*node.value)]
    start = node.value[0] + len(old) - len(old.lstrip())
    return start, start + len(old.strip()), value.encode()


def removal(node: Node) -> Edit:
    return (*node.span, b"")


def edited(packet: bytes, edits: Iterable[Edit]) -> bytes:
    """Return the packet with the edits; those inside a part that another replaces are skipped."""
    parts, at = [], 0
    for start, stop, value in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start >= at:
            parts += [packet[at:start], value]
            at = stop
    return b"".join([*parts, packet[at:]])
