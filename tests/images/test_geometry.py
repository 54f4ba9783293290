"""Metadata that counts in pixels follows the picture: scaled and in all eight orientations."""

import io
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from restorer.images import encode, photo
from restorer.images.formats import exif, photoshop, xmp
from restorer.images.formats.metadata import RawMetadata
from restorer.images.placement import Placement, placement
from tests import pictures
from tests.conftest import photo_like
from tests.images.readers import exiftool, needs_exiftool, tagged
from tests.images.test_inventory import RDF, WRITTEN, in_jpeg

WIDTH, HEIGHT, SCALE = 40, 30, 2
LEFT, TOP, ACROSS, DOWN = 4, 6, 12, 10  # of the marked box, in pixels of the file


def marked(orientation: int) -> bytes:
    """Return a JPEG with one white box on black."""
    samples = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    samples[TOP : TOP + DOWN, LEFT : LEFT + ACROSS] = 255
    block = pictures.exif_block("<", {0x0112: (3, [orientation])})
    return pictures.with_exif(pictures.pillow(samples, "JPEG", quality=100, subsampling=0), block)


def enlarged(data: bytes) -> photo.Photo:
    before = photo.decode(data)
    return replace(before, pixels=before.pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def white_box(pixels: np.ndarray) -> list[int]:
    """Return left, top, width and height of what is white."""
    rows, columns = np.nonzero(pixels[..., 0] > 128)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]


def with_box(orientation: int) -> bytes:
    """Mark the white box in every notation."""
    x, y, w, h = LEFT / WIDTH, TOP / HEIGHT, ACROSS / WIDTH, DOWN / HEIGHT
    area = f'stArea:x="{x + w / 2}" stArea:y="{y + h / 2}" stArea:w="{w}" stArea:h="{h}"'
    packet = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about=""
      xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
      xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#" xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#"
      xmlns:MP="http://ns.microsoft.com/photo/1.2/" xmlns:MPRI="http://ns.microsoft.com/photo/1.2/t/RegionInfo#"
      xmlns:R="http://ns.microsoft.com/photo/1.2/t/Region#" xmlns:I="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
      xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
      crs:CropLeft="{x}" crs:CropTop="{y}" crs:CropRight="{x + w}" crs:CropBottom="{y + h}"
      GPano:LargestValidInteriorRectLeft="{LEFT}" GPano:LargestValidInteriorRectTop="{TOP}"
      GPano:LargestValidInteriorRectWidth="{ACROSS}" GPano:LargestValidInteriorRectHeight="{DOWN}"
      GPano:FullPanoWidthPixels="{WIDTH}" GPano:FullPanoHeightPixels="{HEIGHT}"
      GPano:CroppedAreaLeftPixels="0" GPano:CroppedAreaTopPixels="0"
      GPano:CroppedAreaImageWidthPixels="{WIDTH}" GPano:CroppedAreaImageHeightPixels="{HEIGHT}">
      <mwg-rs:Regions rdf:parseType="Resource">
      <mwg-rs:AppliedToDimensions stDim:w="{WIDTH}" stDim:h="{HEIGHT}" stDim:unit="pixel"/>
      <mwg-rs:RegionList><rdf:Bag><rdf:li><rdf:Description mwg-rs:Name="Anna" mwg-rs:Type="Face">
      <mwg-rs:Area {area} stArea:unit="normalized"/>
      </rdf:Description></rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>
      <MP:RegionInfo rdf:parseType="Resource"><MPRI:Regions><rdf:Bag><rdf:li R:PersonDisplayName="Anna"
      R:Rectangle="{x}, {y}, {w}, {h}"/></rdf:Bag></MPRI:Regions></MP:RegionInfo>
      <I:ImageRegion><rdf:Bag><rdf:li rdf:parseType="Resource"><I:RegionBoundary rdf:parseType="Resource">
      <I:rbShape>rectangle</I:rbShape><I:rbUnit>pixel</I:rbUnit><I:rbX>{LEFT}</I:rbX><I:rbY>{TOP}</I:rbY>
      <I:rbW>{ACROSS}</I:rbW><I:rbH>{DOWN}</I:rbH></I:RegionBoundary></rdf:li></rdf:Bag></I:ImageRegion>
      </rdf:Description></rdf:RDF></x:xmpmeta>"""
    block = pictures.exif_block(
        "<",
        {0x0112: (3, [orientation]), 0x011A: (5, [300, 1]), 0x011B: (5, [150, 1]), 0x0128: (3, [2])},
        {
            0x9214: (3, [LEFT + ACROSS // 2, TOP + DOWN // 2, ACROSS, DOWN]),
            0xA214: (3, [LEFT, TOP]),
            0xA20E: (5, [400, 1]),
            0xA20F: (5, [300, 1]),
        },
    )
    plain = Image.open(io.BytesIO(marked(orientation)))
    data = pictures.pillow(np.asarray(plain), "JPEG", quality=100, subsampling=0)
    return in_jpeg(pictures.with_exif(data, block), packet.encode())


@needs_exiftool
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
@pytest.mark.parametrize("to", WRITTEN)
def test_boxes_stay_on_what_they_mark(to, orientation):
    """The white pixels of the result are the oracle."""
    after = enlarged(with_box(orientation))
    left, top, across, down = box = white_box(after.pixels)
    result = encode.encode(after, to, quality=100)
    tags, (height, width) = exiftool(result.data), after.pixels.shape[:2]
    fractions = [left / width, top / height, across / width, down / height]
    centre = [left + across / 2, top + down / 2]

    regions = tags["XMP-mwg-rs:RegionInfo"]
    assert regions["AppliedToDimensions"] == {"W": width, "H": height, "Unit": "pixel"}
    area = regions["RegionList"][0]["Area"]
    expected = [centre[0] / width, centre[1] / height, *fractions[2:]]
    assert [area[key] for key in "XYWH"] == pytest.approx(expected, abs=1e-6)
    (person,) = tags["XMP-MP:RegionInfoMP"]["Regions"]
    assert [float(part) for part in person["Rectangle"].split(",")] == pytest.approx(fractions, abs=1e-6)
    boundary = tags["XMP-iptcExt:ImageRegion"][0]["RegionBoundary"]
    assert [boundary[f"Rb{key}"] for key in "XYWH"] == box

    names = ("Left", "Top", "Right", "Bottom")
    crop = [tags[f"XMP-crs:Crop{name}"] for name in names]
    assert crop == pytest.approx([*fractions[:2], (left + across) / width, (top + down) / height], abs=1e-6)
    names = ("Left", "Top", "Width", "Height")
    assert [tags[f"XMP-GPano:LargestValidInteriorRect{name}"] for name in names] == box
    assert (tags["XMP-GPano:FullPanoWidthPixels"], tags["XMP-GPano:CroppedAreaImageHeightPixels"]) == (
        width,
        height,
    )

    assert [int(part) for part in tags["ExifIFD:SubjectArea"].split()] == [*centre, across, down]
    sensor = (width / tags["ExifIFD:FocalPlaneXResolution"], height / tags["ExifIFD:FocalPlaneYResolution"])
    assert sensor == pytest.approx((0.1, 0.1), rel=1e-6)
    turned = orientation >= 5
    assert after.meta.metadata.dpi == (300, 150), "as in the file"
    dpi = photo.decode(result.data).meta.metadata.dpi
    assert dpi == pytest.approx((150, 300) if turned else (300, 150), abs=0.02)
    assert not result.warnings


@needs_exiftool
def test_regions_that_exiftool_wrote_are_moved(tmp_path):
    area = "{X=0.25,Y=0.2,W=0.1,H=0.3,Unit=normalized}"
    region = "{AppliedToDimensions={W=40,H=30,Unit=pixel},RegionList=[{Area=" + area + "}]}"
    data = tagged(tmp_path / "a.jpg", marked(6), f"-XMP-mwg-rs:RegionInfo={region}")
    tags = exiftool(encode.encode(enlarged(data), "jpeg", quality=90).data)
    area = tags["XMP-mwg-rs:RegionInfo"]["RegionList"][0]["Area"]
    assert [area[key] for key in "XYWH"] == [0.8, 0.25, 0.3, 0.1]


@needs_exiftool
@pytest.mark.parametrize("unit", ["pixel", "relative"])
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_circles_and_polygons_stay_on_what_they_mark(orientation, unit, tmp_path):
    across, down = (1, 1) if unit == "pixel" else (WIDTH, HEIGHT)
    corners = [(x / across, y / down) for x in (LEFT, LEFT + ACROSS) for y in (TOP, TOP + DOWN)]
    vertices = ",".join(f"{{RbX={x},RbY={y}}}" for x, y in corners)
    polygon = f"{{RegionBoundary={{RbShape=polygon,RbUnit={unit},RbVertices=[{vertices}]}}}}"
    x, y, radius = (LEFT + ACROSS / 2) / across, (TOP + DOWN / 2) / down, 5 / across
    circle = f"{{RegionBoundary={{RbShape=circle,RbUnit={unit},RbX={x},RbY={y},RbRx={radius}}}}}"
    area = f"{{X={x},Y={y},D=5,Unit={unit.replace('relative', 'normalized')}}}"
    data = tagged(
        tmp_path / "a.jpg",
        marked(orientation),
        f"-XMP-iptcExt:ImageRegion=[{polygon},{circle}]",
        f"-XMP-mwg-rs:RegionInfo={{RegionList=[{{Area={area}}}]}}",
    )
    after = enlarged(data)
    tags = exiftool(encode.encode(after, "jpeg", quality=100).data)
    shapes = [region["RegionBoundary"] for region in tags["XMP-iptcExt:ImageRegion"]]
    across, down = (1, 1) if unit == "pixel" else (after.width, after.height)
    points = np.array([(float(one["RbX"]), float(one["RbY"])) for one in shapes[0]["RbVertices"]])
    points *= across, down
    left, top, width, height = white_box(after.pixels)
    assert points.min(0) == pytest.approx((left, top), abs=1e-4)
    assert points.max(0) == pytest.approx((left + width, top + height), abs=1e-4)
    centre = float(shapes[1]["RbX"]) * across, float(shapes[1]["RbY"]) * down
    assert centre == pytest.approx((left + width / 2, top + height / 2), abs=1e-4)
    assert float(shapes[1]["RbRx"]) * across == pytest.approx(5 * SCALE, abs=1e-4)
    diameter = tags["XMP-mwg-rs:RegionInfo"]["RegionList"][0]["Area"]["D"]
    assert diameter == (5 * SCALE if unit == "pixel" else 5)


def test_numbers_that_cannot_be_read_are_left_alone():
    for text in ("1e999999999", "1/0", "nan", "0x10", "9" * 400, ""):
        packet = f'<a xmlns:s="http://ns.adobe.com/xmp/sType/Area#"><b s:x="{text}" s:y="0.5"/></a>'.encode()
        assert xmp.update(packet, 3, 4, Placement(6)) == packet


@pytest.mark.parametrize("name", ["\xe9", "a"])
def test_namespaces_inside_values_are_no_declarations(name):
    packet = f"<a {name}=\"x xmlns:b='u'\"/>".encode()
    assert xmp.update(packet, 3, 4, Placement(6)) == packet


@pytest.mark.parametrize("tag", [0x9214, 0xA214, 0xA20E, 33550, 33922, 34264, 34735])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 12, 16])
def test_numbers_that_are_not_finite_do_not_fail(count, tag, rng):
    numbers = [float("nan"), float("inf"), -1.0, 1e38] * 4
    values = exif.Entry(11, struct.pack(f"<{count}f", *numbers[:count]))
    scale = exif.Entry(12, struct.pack("<3d", 1, 1, 0))
    block = exif.serialize("<", {33550: scale, tag: values, exif.EXIF: {tag: values}})
    meta = photo.Meta(
        *("tiff", False, 8, False, False, 6, (4, 3)), metadata=RawMetadata(exif=block, dpi=(300, 300))
    )
    assert encode.encode(photo.Photo(pictures.noise(rng, 8, 6), None, meta), "tiff", quality=90).data


@pytest.mark.parametrize("name", ["exif:SubjectArea", "Iptc4xmpExt:rbVertices"])
def test_work_for_nested_elements_is_bounded(name):
    """Ten times the elements cause about ten times the function calls."""

    def calls(count: int) -> int:
        start, end = f"<{name}>".encode(), f"</{name}>".encode()
        packet = start * count + b"<rdf:li>1</rdf:li>" + end * count
        total = 0

        def count_call(frame, event, _):
            nonlocal total
            total += event in ("call", "c_call")

        sys.setprofile(count_call)
        try:
            assert xmp.update(packet, 3, 4, Placement(6, scale_x=2.0), history="{}") == packet
        finally:
            sys.setprofile(None)
        return total

    assert calls(1000) < 11 * calls(100)


@needs_exiftool
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_subject_areas_in_xmp_are_moved(orientation, tmp_path):
    plain = pictures.pillow(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "JPEG")
    data = tagged(
        tmp_path / "a.jpg",
        pictures.with_exif(plain, pictures.exif_block("<", {0x0112: (3, [orientation])})),
        *(f"-XMP-exif:SubjectArea+={value}" for value in (12, 8, 6, 4)),
        *("-XMP-exif:FocalPlaneXResolution=400", "-XMP-exif:FocalPlaneYResolution=300"),
    )
    after = enlarged(data)
    tags = exiftool(encode.encode(after, "png", quality=90).data)
    moved = placement(orientation, (WIDTH, HEIGHT), (after.width, after.height))
    x, y, across, down = moved.box((9, 6, 6, 4))
    assert tags["XMP-exif:SubjectArea"] == [x + across / 2, y + down / 2, across, down]
    densities = [tags[f"XMP-exif:FocalPlane{axis}Resolution"] for axis in "XY"]
    assert [after.width / densities[0], after.height / densities[1]] == pytest.approx([0.1, 0.1])


def test_properties_are_known_by_their_namespace():
    packet = b'<a xmlns:s="http://ns.adobe.com/xmp/sType/Area#" xmlns:stArea="http://other/">'
    packet += b'<b s:x="0.25" s:y="0.5"/><b stArea:x="0.25" stArea:y="0.5"/></a>'
    changed = packet.replace(b's:x="0.25" s:y="0.5"', b's:x="0.5" s:y="0.25"', 1)
    assert xmp.update(packet, 3, 4, Placement(6)) == changed


def test_sizes_in_other_units_are_only_turned():
    packet = b'<a xmlns:stDim="http://ns.adobe.com/xap/1.0/sType/Dimensions#">'
    packet += b'<b stDim:w="8.5" stDim:h="11" stDim:unit="inch"/></a>'
    assert xmp.update(packet, 3, 4, Placement(1, 10, 10, 2, 2)) == packet
    turned = packet.replace(b'w="8.5" stDim:h="11"', b'w="11" stDim:h="8.5"')
    assert xmp.update(packet, 3, 4, Placement(6, 10, 10, 2, 2)) == turned


# Photoshop paths


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_paths_are_turned(orientation):
    x, y = 0.25, 0.75
    point = struct.pack(">ii", round(y * (1 << 24)), round(x * (1 << 24)))
    path = struct.pack(">H24x", 6) + struct.pack(">H", 1) + point * 3
    data = photoshop.serialize([photoshop.Resource(2000, b"\0\0", path)])
    (resource,) = photoshop.resources(photoshop.transform(data, Placement(orientation)))
    assert resource.body[:26] == path[:26]
    moved = struct.unpack(">6i", resource.body[28:])
    grid = np.zeros((4, 4, 1), np.uint8)
    grid[3, 1] = 255  # the pixel whose corner is the point
    left, top, _, _ = Placement(orientation).box((x, y, 0.25, 0.25))
    upright = photo._upright(grid, orientation)
    assert np.argwhere(upright[..., 0]).tolist() == [[round(top * 4), round(left * 4)]]
    corner = Placement(orientation).box((x, y, 0, 0))
    assert moved == tuple(round(value * (1 << 24)) for value in (corner[1], corner[0]) * 3)


# GeoTIFF


def on_map(data: bytes, column: float, row: float) -> tuple[float, float]:
    """Return east and north of a point, as GDAL computes them, with tifffile's reading of the tags."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = {tag.code: tag.value for tag in file.pages.first.tags}
    if 34264 in tags:
        east, north, *_ = np.reshape(tags[34264], (4, 4)) @ (column, row, 0, 1)
        return east, north
    (x, y, _), (i, j, _, east, north, _) = tags[33550], tags[33922]
    return east + (column - i) * x, north - (row - j) * y


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_geotiff_stays_in_place(orientation, point, rng):
    keys = (1, 1, 0, 1, 1025, 0, 1, 2 if point else 1)
    extra = [
        (33550, 12, 3, (10.0, 20.0, 0.0), True),
        (33922, 12, 6, (1.0, 2.0, 0.0, 500000.0, 5400000.0, 7.0), True),
        (34735, 3, 8, keys, True),
        (274, 3, 1, orientation, True),
    ]
    data = pictures.tiff(photo_like(rng, HEIGHT, WIDTH), photometric="rgb", extratags=extra)
    after = enlarged(data)
    result = encode.encode(after, "tiff", quality=90)
    assert not result.warnings
    corner = 0.5 if point else 0  # with pixel centres as whole numbers, the corner of pixel 0 is at -0.5
    for column, row in ((0, 0), (WIDTH, 0), (7, 11)):
        moved = placement(orientation, (WIDTH, HEIGHT), (after.width, after.height))
        x, y, _, _ = moved.box((column, row, 0, 0))
        expected = on_map(data, column - corner, row - corner)
        assert on_map(result.data, x - corner, y - corner) == pytest.approx(expected)
    for other in ("png", "jpeg", "webp", "avif"):
        assert "left out: GeoTIFF" in encode.encode(after, other, quality=90).warnings[0]
