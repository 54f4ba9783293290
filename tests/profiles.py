"""Colour profiles for tests, built byte by byte (ICC.1:2001-04, version 2), and their CIE Lab values."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
_D65 = np.array([0.3127, 0.3290])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_PRIMARIES = {
    "srgb": [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)],
    "p3": [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)],
    "adobe": [(0.640, 0.330), (0.210, 0.710), (0.150, 0.060)],
    "linear": [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)],
}
_ADOBE_GAMMA = 563 / 256
# Transmittance of each ink in linear sRGB: high enough for every mixture to lie within sRGB
_INKS = np.array([[0.10, 0.35, 0.55], [0.55, 0.08, 0.25], [0.75, 0.55, 0.08], [0.06, 0.06, 0.06]])


def rgb(name: str) -> bytes:
    """Build a display profile: "srgb", "p3", "adobe" or "linear" (linear light with sRGB primaries)."""
    red, green, blue = _colorants(name).T
    curve = {"adobe": _gamma(563), "linear": _curve([])}.get(name, _curve(_srgb_table()))
    tags = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey(*, linear: bool = False) -> bytes:
    """Build a grey profile of gamma 1.8 or of linear light."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve([]) if linear else _gamma(round(1.8 * 256))})


def cmyk() -> bytes:
    """Build a printer profile to Lab with two nodes per ink."""
    nodes = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    measured = _node_lab(nodes)
    # The perceptual table differs from the colorimetric one, as in real profiles
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _lut(measured // 2 + 64), b"A2B1": _lut(measured)})


def cmyk_lab(inks: np.ndarray) -> np.ndarray:
    """Return CIE Lab of (..., 4) uint8 inks in cmyk(), interpolated in its table."""
    coverage = inks[..., None, :] / 255
    nodes = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    weights = np.where(nodes == 1, coverage, 1 - coverage).prod(axis=-1)
    table = _node_lab(nodes).astype(float)
    return weights @ np.column_stack([table[:, 0] / 2.55, table[:, 1] - 128, table[:, 2] - 128])


def rgb_lab(values: np.ndarray, name: str) -> np.ndarray:
    """Return CIE Lab (D50) of (..., 3) values in [0, 1] in the profile rgb(name)."""
    if name == "adobe":
        light = values**_ADOBE_GAMMA
    elif name == "linear":
        light = values
    else:
        light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return _lab(light @ _colorants(name).T)


def _lab(xyz: np.ndarray) -> np.ndarray:
    ratio = xyz / D50
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _node_lab(nodes: np.ndarray) -> np.ndarray:
    """Return Lab at the table's nodes, in the 8-bit encoding of lut8Type."""
    light = np.where(nodes[..., None] == 1, _INKS, 1).prod(axis=-2)
    lab = _lab(light @ _colorants("srgb").T)
    return np.rint(lab * [2.55, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8)


def _colorants(name: str) -> np.ndarray:
    """Return the (3, 3) matrix from linear RGB to XYZ, adapted to D50."""
    x, y = np.array(_PRIMARIES[name]).T
    columns = np.array([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([_D65[0] / _D65[1], 1, (1 - _D65.sum()) / _D65[1]])
    to_xyz = columns * np.linalg.solve(columns, white)
    cones = np.diag(_BRADFORD @ D50 / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ to_xyz


def _srgb_table() -> list[int]:
    value = np.linspace(0, 1, 1024)
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.rint(light * 65535).astype(int).tolist()


def _lut(lab: np.ndarray) -> bytes:
    """Build a lut8Type from four channels, two nodes each, to Lab."""
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    return b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab.tobytes() + ramp * 3


def _xyz(value: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(part) * 65536) for part in value))


def _curve(table: list[int]) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(f">I{len(table)}H", len(table), *table)


def _gamma(in_256ths: int) -> bytes:
    return _curve([in_256ths])


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0" + text, b"wtpt": _xyz(D50), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, connection)
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", *(round(float(part) * 65536) for part in D50))
    return head.ljust(128, b"\0") + table + body
