"""A PNG's pixels in stripes: whatever the library and the threads, other readers see the same."""

import io
import itertools
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from restorer.images import resample
from restorer.images.formats import png, png_encoder
from restorer.images.formats.metadata import RawMetadata
from tests import pictures
from tests.conftest import photo_like

SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (97, 41)]


@pytest.fixture(params=["small", "isal", "zlib"])
def library(request, monkeypatch):
    """Each way to deflate."""
    if request.param == "isal":
        pytest.importorskip("isal")
    if request.param == "zlib":
        monkeypatch.setattr(png_encoder, "isal_zlib", None)
    monkeypatch.setattr(png_encoder, "_SMALL", 1 << 60 if request.param == "small" else 0)


def written(samples: np.ndarray, blocks: RawMetadata | None = None) -> bytes:
    return png.encode(samples.__getitem__, len(samples), blocks or RawMetadata())


def stored(data: bytes) -> bytes:
    """What the IDAT chunks hold, each chunk's checksum being right."""
    chunks = list(png._chunks(data))
    assert all(intact for _, _, intact in chunks)
    return b"".join(chunk[8:-4] for kind, chunk, _ in chunks if kind == b"IDAT")


@pytest.mark.parametrize("stripe", [1, 1000, 1 << 20])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.usefixtures("library")
def test_two_other_readers_see_the_samples(channels, deep, stripe, rng, monkeypatch):
    monkeypatch.setattr(png_encoder, "_STRIPE", stripe)
    for height, width in SIZES:
        samples = pictures.noise(rng, height, width, channels, deep)
        data = written(samples)
        np.testing.assert_array_equal(imagecodecs.png_decode(data).reshape(samples.shape), samples)
        if channels != 2:
            swapped = samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
            seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(seen.reshape(swapped.shape), swapped)
        with Image.open(io.BytesIO(data)) as image:
            if not deep:
                np.testing.assert_array_equal(np.asarray(image).reshape(samples.shape), samples)
        with Image.open(io.BytesIO(data)) as image:
            image.verify()


@pytest.mark.usefixtures("library")
def test_a_photo_of_several_stripes_in_one_stream(rng, monkeypatch):
    """zlib itself checks the sum of all stripes' bytes. Both filters are used."""
    samples = photo_like(rng, 700, 900)
    samples[300:] = samples[300]
    data = written(samples)
    lines = np.frombuffer(zlib.decompress(stored(data)), np.uint8).reshape(700, 1 + 900 * 3)
    assert set(lines[:, 0]) == {1, 2}
    assert sum(kind == b"IDAT" for kind, _, _ in png._chunks(data)) == 3, "two stripes and the end"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), samples)
    monkeypatch.setattr(resample, "_THREADS", 1)
    assert written(samples) == data, "whatever the number of threads"


@pytest.mark.usefixtures("library")
def test_a_view_is_written_as_its_copy_is(rng):
    whole = photo_like(rng, 90, 80)
    for view in (whole[::-1], whole[:, ::2], whole.swapaxes(0, 1), whole[..., :1], whole[..., 0]):
        assert written(view) == written(view.copy())


@pytest.mark.usefixtures("library")
def test_what_stands_beside_the_pixels_comes_before_them(rng):
    text = pictures.chunk(b"tEXt", b"Title\0a title")
    blocks = RawMetadata(
        icc=b"profile", exif=pictures.camera_exif(), xmp=pictures.XMP, dpi=(300, 300), text=text
    )
    data = written(photo_like(rng, 700, 900), blocks)
    kinds = [kind for kind, _ in itertools.groupby(kind for kind, _, _ in png._chunks(data))]
    assert kinds == [b"IHDR", b"iCCP", b"pHYs", b"eXIf", b"iTXt", b"tEXt", b"IDAT"]
    assert data.endswith(struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    warnings = []
    read = png.split(data, warnings)[1]
    assert (read.icc, read.exif, read.xmp, read.text) == (b"profile", blocks.exif, blocks.xmp, text)
    assert not warnings


def test_a_large_photo_is_written_fast_and_a_small_one_small(rng, monkeypatch):
    asked = []
    monkeypatch.setattr(png_encoder, "isal_zlib", None)
    monkeypatch.setattr(
        zlib, "compressobj", lambda *how, real=zlib.compressobj: asked.append(how[0]) or real(*how)
    )
    for side in (590, 600):  # below a mebibyte and above
        list(png_encoder.chunks(np.zeros((side, side, 3), np.uint8).__getitem__, side))
    assert asked == [4] + [1] * 2
