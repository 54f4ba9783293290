"""PNG files are decoded correctly by other libraries, whichever compressor wrote them."""

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
def compressor(request, monkeypatch):
    """Select each compressor."""
    if request.param == "isal":
        pytest.importorskip("isal")
    if request.param == "zlib":
        monkeypatch.setattr(png_encoder, "isal_zlib", None)
    monkeypatch.setattr(png_encoder, "_SMALL_IMAGE", 1 << 60 if request.param == "small" else 0)


def encode(samples: np.ndarray, metadata: RawMetadata | None = None) -> bytes:
    return png.encode(samples.__getitem__, len(samples), metadata or RawMetadata())


def idat_stream(data: bytes) -> bytes:
    """Return the contents of all IDAT chunks after checking every chunk's checksum."""
    chunks = list(png._chunks(data))
    assert all(intact for _, _, intact in chunks)
    return b"".join(chunk[8:-4] for kind, chunk, _ in chunks if kind == b"IDAT")


@pytest.mark.parametrize("stripe", [1, 1000, 1 << 20])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.usefixtures("compressor")
def test_other_libraries_decode_the_samples(channels, deep, stripe, rng, monkeypatch):
    monkeypatch.setattr(png_encoder, "_STRIPE_BYTES", stripe)
    for height, width in SIZES:
        samples = pictures.noise(rng, height, width, channels, deep)
        data = encode(samples)
        np.testing.assert_array_equal(imagecodecs.png_decode(data).reshape(samples.shape), samples)
        if channels != 2:
            swapped = samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(decoded.reshape(swapped.shape), swapped)
        with Image.open(io.BytesIO(data)) as image:
            if not deep:
                np.testing.assert_array_equal(np.asarray(image).reshape(samples.shape), samples)
        with Image.open(io.BytesIO(data)) as image:
            image.verify()


@pytest.mark.usefixtures("compressor")
def test_stripes_form_one_zlib_stream(rng, monkeypatch):
    """zlib checks the combined Adler-32 itself; both filters are used."""
    samples = photo_like(rng, 700, 900)
    samples[300:] = samples[300]
    data = encode(samples)
    lines = np.frombuffer(zlib.decompress(idat_stream(data)), np.uint8).reshape(700, 1 + 900 * 3)
    assert set(lines[:, 0]) == {1, 2}
    assert sum(kind == b"IDAT" for kind, _, _ in png._chunks(data)) == 3, "two stripes and the end"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), samples)
    monkeypatch.setattr(resample, "_THREADS", 1)
    assert encode(samples) == data, "independent of the number of threads"


@pytest.mark.usefixtures("compressor")
def test_views_are_encoded_like_copies(rng):
    samples = photo_like(rng, 90, 80)
    for view in (samples[::-1], samples[:, ::2], samples.swapaxes(0, 1), samples[..., :1], samples[..., 0]):
        assert encode(view) == encode(view.copy())


@pytest.mark.usefixtures("compressor")
def test_metadata_chunks_precede_the_pixels(rng):
    text = pictures.chunk(b"tEXt", b"Title\0a title")
    metadata = RawMetadata(
        icc=b"profile", exif=pictures.camera_exif(), xmp=pictures.XMP, dpi=(300, 300), text=text
    )
    data = encode(photo_like(rng, 700, 900), metadata)
    kinds = [kind for kind, _ in itertools.groupby(kind for kind, _, _ in png._chunks(data))]
    assert kinds == [b"IHDR", b"iCCP", b"pHYs", b"eXIf", b"iTXt", b"tEXt", b"IDAT"]
    assert data.endswith(struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    warnings = []
    read = png.split_metadata(data, warnings)[1]
    assert (read.icc, read.exif, read.xmp, read.text) == (b"profile", metadata.exif, metadata.xmp, text)
    assert not warnings


def test_only_small_images_get_the_slower_level(rng, monkeypatch):
    levels = []
    monkeypatch.setattr(png_encoder, "isal_zlib", None)
    monkeypatch.setattr(
        zlib, "compressobj", lambda *args, real=zlib.compressobj: levels.append(args[0]) or real(*args)
    )
    for side in (590, 600):  # just below and above 1 MiB of samples
        list(png_encoder.idat_chunks(np.zeros((side, side, 3), np.uint8).__getitem__, side))
    assert levels == [4] + [1] * 2
