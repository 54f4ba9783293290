"""Colour profiles: colours survive decoding and encoding in every colour space."""

import io
import struct
import zlib
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage.color import deltaE_ciede2000

from restorer.images import encode, icc, photo, sandbox
from tests import pictures, profiles
from tests.conftest import photo_like

SATURATED = np.array(
    [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [0, 255, 255],
        [255, 0, 255],
        [255, 255, 0],
        [255, 96, 0],
        [96, 0, 200],
    ],
    np.uint8,
)
INKS = np.array([[c, m, y, 0] for c in (0, 255) for m in (0, 255) for y in (0, 255)], np.uint8)
INKS[0] = [255, 0, 0, 255]  # replaces white
SIDE = 24
# 8-bit YUV of Pillow's AVIF encoder is off by 2 levels at any quality: 2.04 dE2000 in the darkest ink
MAX_DELTA_E = {"avif": 2.1}


def patches(colours: np.ndarray) -> np.ndarray:
    return colours[None].repeat(SIDE, axis=1).repeat(SIDE, axis=0)


def patch_means(pixels: np.ndarray) -> np.ndarray:
    """Return the mean colours in [0, 1] of the centres of the eight patches, (8, 3)."""
    scale = pixels.shape[0] // SIDE
    step = SIDE * scale
    top = np.iinfo(pixels.dtype).max
    inner = [
        pixels[step // 4 : -step // 4, left + step // 4 : left + step * 3 // 4]
        for left in range(0, step * 8, step)
    ]
    return np.array([patch.mean(axis=(0, 1)) / top for patch in inner])


def doubled(data: bytes, image_format: str) -> Image.Image:
    """Decode, double in size by nearest neighbour and encode; return the stored values and profile."""
    before = photo.decode(data)
    pixels = before.pixels.repeat(2, axis=0).repeat(2, axis=1)
    result = encode.encode(replace(before, pixels=pixels), image_format, quality=100).data
    return Image.open(io.BytesIO(result))


@pytest.mark.parametrize("image_format", ["png", "tiff", "jpeg", "webp", "avif"])
@pytest.mark.parametrize("name", ["srgb", "p3", "adobe", "linear"])
def test_saturated_rgb_colours_are_preserved(name, image_format):
    profile = profiles.rgb(name)
    data = pictures.pillow(patches(SATURATED), "PNG", icc_profile=profile)
    image = doubled(data, image_format)
    assert image.info["icc_profile"] == profile
    delta_e = deltaE_ciede2000(
        profiles.rgb_lab(SATURATED / 255, name), profiles.rgb_lab(patch_means(np.asarray(image)), name)
    )
    assert delta_e.max() < MAX_DELTA_E.get(image_format, 1.0)


@pytest.mark.parametrize("image_format", ["png", "tiff", "jpeg", "webp", "avif"])
@pytest.mark.parametrize("source", ["TIFF", "JPEG"])
def test_saturated_cmyk_colours_are_preserved(source, image_format):
    image = Image.fromarray(patches(INKS), "CMYK")
    data = pictures.pillow(
        image, source, icc_profile=profiles.cmyk(), **({"quality": 100} if source == "JPEG" else {})
    )
    result = doubled(data, image_format)
    assert not result.info.get("icc_profile")
    delta_e = deltaE_ciede2000(
        profiles.cmyk_lab(INKS), profiles.rgb_lab(patch_means(np.asarray(result)), "srgb")
    )
    assert delta_e.max() < MAX_DELTA_E.get(image_format, 1.0)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ["p3", "adobe"])
def test_values_of_wide_gamut_files_are_unchanged(name, deep, rng):
    samples = pictures.noise(rng, 20, 30, deep=deep)
    data = pictures.tiff(samples, photometric="rgb", iccprofile=profiles.rgb(name))
    read = photo.decode(data)
    np.testing.assert_array_equal(read.pixels, samples)
    assert (read.meta.metadata.icc, read.meta.linear) == (profiles.rgb(name), False)


# Linear light


@pytest.mark.parametrize("deep", [False, True])
def test_linear_light_is_decoded_to_the_srgb_curve_and_encoded_back(deep, rng):
    samples = pictures.noise(rng, 64, 48, 4, deep)
    data = pictures.tiff(
        samples, photometric="rgb", extrasamples=["unassalpha"], iccprofile=profiles.rgb("linear")
    )
    read = photo.decode(data)
    assert (read.pixels.dtype, read.alpha.dtype, read.meta.linear) == (np.uint16, np.uint16, True)
    light = samples[..., :3] / (65535 if deep else 255)
    curved = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal(read.pixels, np.rint(curved * 65535))
    np.testing.assert_array_equal(read.alpha, samples[..., 3] if deep else samples[..., 3].astype(int) * 257)
    back = photo.decode(encode.encode(read, "png", quality=95).data)
    assert back.meta.depth == (16 if deep else 8)
    stored = imagecodecs.png_decode(encode.encode(read, "png", quality=95).data)
    np.testing.assert_allclose(stored.astype(int), samples, atol=2 if deep else 0)


def test_decode_linear_inverts_encode_linear():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    curved = icc.encode_linear(values)
    assert (np.diff(curved.ravel().astype(int)) >= 0).all()
    np.testing.assert_allclose(icc.decode_linear(curved).astype(int), values, atol=2)
    values_8_bit = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(
        encode.to_uint8(icc.decode_linear(icc.encode_linear(values_8_bit))), values_8_bit
    )


@pytest.mark.parametrize(
    ("profile", "space", "linear"),
    [(profiles.rgb(name), "RGB", name == "linear") for name in ("srgb", "p3", "adobe", "linear")]
    + [
        (profiles.grey(), "GRAY", False),
        (profiles.grey(linear=True), "GRAY", True),
        (profiles.cmyk(), "CMYK", False),
    ],
)
def test_profile_is_classified(profile, space, linear):
    assert (icc.color_space(profile), icc.is_linear(profile)) == (space, linear)


# Grey


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("image_format", ["png", "tiff", "jpeg", "webp", "avif"])
def test_grey_profile_is_preserved_or_converted_to_srgb(image_format, linear):
    profile = profiles.grey(linear=linear)
    ramp = np.linspace(30, 255, 10).astype(np.uint8).repeat(16)[None].repeat(24, axis=0)
    read = photo.decode(pictures.pillow(ramp, "PNG", icc_profile=profile))
    assert (read.meta.linear, read.meta.metadata.icc) == (linear, profile)
    image = Image.open(io.BytesIO(encode.encode(read, image_format, quality=100).data))
    stored = np.asarray(image.convert("L")).astype(float)
    if image_format in ("webp", "avif"):
        assert not image.info.get("icc_profile")
        light = (ramp / 255) ** (1 if linear else round(1.8 * 256) / 256)
        expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(stored, expected, atol=2.5)
    else:
        assert image.info["icc_profile"] == profile
        np.testing.assert_allclose(stored, ramp, atol=1)


def test_alpha_survives_conversion_of_grey_to_srgb(rng):
    samples = np.dstack([photo_like(rng, 40, 50)[..., 0], pictures.noise(rng, 40, 50, 1)])
    read = photo.decode(pictures.pillow(samples, "PNG", icc_profile=profiles.grey()))
    back = photo.decode(encode.encode(read, "webp", quality=100).data)
    np.testing.assert_array_equal(back.alpha, samples[..., 1])


# CMYK and Lab without a usable profile


@pytest.mark.parametrize(
    "profile", [None, b"junk" * 50, profiles.rgb("p3"), profiles.cmyk()[:-300], profiles.cmyk()[:200]]
)
def test_cmyk_without_a_usable_profile_is_converted_with_a_warning(profile):
    image = Image.fromarray(patches(INKS), "CMYK")
    options = {"icc_profile": profile} if profile else {}
    read = photo.decode(pictures.pillow(image, "TIFF", **options))
    np.testing.assert_array_equal(read.pixels, np.asarray(image.convert("RGB")))
    assert any("the colours are approximate" in warning for warning in read.meta.warnings)


def test_inverted_cmyk_of_photoshop_decodes():
    """Photoshop writes CMYK JPEGs inverted and marks them with an Adobe segment."""
    image = Image.fromarray(patches(INKS), "CMYK")
    data = pictures.pillow(image, "JPEG", quality=100)
    assert b"Adobe" in data[:300]
    np.testing.assert_allclose(
        photo.decode(data).pixels.astype(int), np.asarray(image.convert("RGB")), atol=3
    )


def test_lab_tiff_is_converted_to_srgb():
    lab = np.array([[50, 0, 0], [100, 0, 0], [0, 0, 0], [60, 40, 30], [40, -30, 10], [70, 10, -40]])
    stored = np.column_stack([np.rint(lab[:, 0] * 2.55), lab[:, 1:] % 256]).astype(np.uint8)
    data = pictures.tiff(stored[None].repeat(8, axis=0), photometric="cielab")
    pixels = photo.decode(data).pixels[0]
    assert deltaE_ciede2000(lab.astype(float), profiles.rgb_lab(pixels / 255, "srgb")).max() < 1.0


# Broken and mismatched profiles


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    "profile",
    [
        b"junk" * 50,
        profiles.cmyk(),
        profiles.grey(),
        profiles.rgb("p3")[:200],
        profiles.rgb("p3")[:127],
        b"\0" * 400,
        profiles.rgb("srgb")[:-40],
    ],
    ids=["junk", "cmyk", "grey", "cut", "head", "zeros", "last tag"],
)
def test_unusable_profile_is_left_out_with_a_warning(profile, image_format, rng):
    samples = photo_like(rng, 20, 30)
    read = photo.decode(pictures.pillow(samples, image_format, icc_profile=profile))
    np.testing.assert_array_equal(read.pixels, photo.decode(pictures.pillow(samples, image_format)).pixels)
    assert read.meta.metadata.icc == b""
    assert read.meta.warnings == (
        "the colour profile is damaged or does not match the image and was left out",
    )


def test_rgb_profile_of_grey_image_is_left_out(rng):
    read = photo.decode(
        pictures.pillow(pictures.noise(rng, 9, 9, 1), "PNG", icc_profile=profiles.rgb("srgb"))
    )
    assert (read.meta.grey, read.meta.metadata.icc) == (True, b"")


PRIMARIES = {
    "srgb": [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)],
    "p3": [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)],
    "adobe": [(0.640, 0.330), (0.210, 0.710), (0.150, 0.060)],
}


def with_chunks(plain: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    built = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return plain[:33] + b"".join(built) + plain[33:]


def chrm(name: str) -> tuple[bytes, bytes]:
    values = [0.3127, 0.3290, *np.ravel(PRIMARIES[name])]
    return b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in values))


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(1e5 / gamma))


@pytest.mark.parametrize(
    ("chunks", "name"),
    [
        ([(b"cICP", b"\x0c\x0d\x00\x01")], "p3"),
        ([(b"cICP", b"\x0c\x0d\x00\x01"), chrm("adobe"), (b"sRGB", b"\0")], "p3"),
        ([chrm("p3")], "p3"),
        ([chrm("adobe"), gama(563 / 256)], "adobe"),
        ([gama(1.0)], "linear"),
        ([(b"cICP", b"\x01\x08\x00\x01")], "linear"),
    ],
)
def test_colours_described_by_numbers_get_the_matching_profile(chunks, name):
    plain = pictures.pillow(patches(SATURATED), "PNG")
    read = photo.decode(with_chunks(plain, *chunks))
    assert not read.meta.warnings and read.meta.linear == (name == "linear")
    again = photo.decode(with_chunks(plain, *chunks))
    assert again.meta.metadata.icc == read.meta.metadata.icc, "the same bytes every time"
    for image_format in ("png", "jpeg", "webp", "avif", "tiff"):
        data = encode.encode(read, image_format, quality=100).data
        image = Image.open(io.BytesIO(data))
        lab = profiles.rgb_lab(patch_means(np.asarray(image)), name)
        delta_e = deltaE_ciede2000(profiles.rgb_lab(SATURATED / 255, name), lab)
        assert delta_e.max() < MAX_DELTA_E.get(image_format, 1.0)
        through_profile = lcms_lab(np.asarray(image), image.info["icc_profile"])
        expected = lcms_lab(np.asarray(image), profiles.rgb(name))
        assert np.abs(through_profile - expected).max() <= 1.5


def lcms_lab(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """CIE Lab of pixels by littlecms, which Pillow returns in bytes: L* by 2.55, a* and b* signed."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    lab = ImageCms.buildTransform(source, ImageCms.createProfile("LAB"), "RGB", "LAB")
    values = np.asarray(lab.apply(Image.fromarray(pixels)))
    return np.dstack([values[..., 0] / 2.55, values[..., 1:].astype(np.int8)]).astype(float)


def test_numbers_of_a_grey_png_make_a_grey_profile(rng):
    plain = pictures.pillow(pictures.noise(rng, 9, 9, 1), "PNG")
    read = photo.decode(with_chunks(plain, chrm("p3"), gama(1.8)))
    assert read.meta.grey and icc.color_space(read.meta.metadata.icc) == "GRAY" and not read.meta.warnings
    assert photo.decode(with_chunks(plain, chrm("p3"), gama(2.2))).meta.metadata.icc == b""


def test_numbers_of_srgb_need_no_profile(rng):
    plain = pictures.pillow(photo_like(rng, 8, 9), "PNG")
    for chunks in (
        [(b"cICP", b"\x01\x0d\x00\x01")],
        [gama(2.2)],
        [gama(2.2), chrm("srgb")],
        [(b"sRGB", b"\0"), gama(1.0), chrm("p3")],
    ):
        meta = photo.decode(with_chunks(plain, *chunks)).meta
        assert (meta.metadata.icc, meta.warnings) == (b"", ())
    profile = profiles.rgb("adobe")
    embedded = pictures.pillow(photo_like(rng, 8, 9), "PNG", icc_profile=profile)
    assert photo.decode(with_chunks(embedded, gama(1.0), chrm("p3"))).meta.metadata.icc == profile


@pytest.mark.parametrize(
    "chunk",
    [
        (b"cICP", b"\x09\x10\x00\x01"),  # BT.2020 with PQ
        (b"cICP", b"\x0c\x0d\x00\x00"),  # narrow range
        (b"gAMA", b""),
        (b"gAMA", bytes(4)),
        (b"gAMA", struct.pack(">I", 1)),
        (b"cHRM", bytes(32)),
        (b"cHRM", b"\xff" * 32),
    ],
)
def test_numbers_without_a_profile_raise_a_warning(chunk, rng):
    plain = pictures.pillow(photo_like(rng, 8, 9), "PNG")
    meta = photo.decode(with_chunks(plain, chunk)).meta
    assert "taken for sRGB" in meta.warnings[0] and meta.metadata.icc == b""


@pytest.mark.parametrize(("codes", "name"), [(b"\0\x0c\0\x0d", "p3"), (b"\0\x01\0\x08", "linear")])
def test_code_points_of_avif_get_the_matching_profile(codes, name, rng):
    tagged = bytearray(pictures.pillow(photo_like(rng, 16, 16), "AVIF"))
    assert not photo.decode(bytes(tagged)).meta.warnings
    at = tagged.index(b"colrnclx") + 8
    tagged[at : at + 4] = codes
    read = photo.decode(bytes(tagged))
    assert not read.meta.warnings and read.meta.linear == (name == "linear")
    pixels = patches(SATURATED)
    built, expected = (lcms_lab(pixels, one) for one in (read.meta.metadata.icc, profiles.rgb(name)))
    assert np.abs(built - expected).max() <= 1.5
    tagged[at : at + 4] = b"\0\x09\0\x10"  # BT.2020 with PQ
    assert "taken for sRGB" in photo.decode(bytes(tagged)).meta.warnings[0]


@pytest.mark.parametrize("source", ["TIFF", "JPEG"])
def test_black_of_cmyk_is_compensated_as_by_littlecms(source):
    inks = [(0, 0, 0, 255), (191, 173, 171, 230), (0, 0, 0, 128), (255, 255, 255, 255), (0, 255, 255, 0)]
    image = Image.fromarray(patches(np.array(inks, np.uint8)), "CMYK")
    quality = {"quality": 100, "subsampling": 0} if source == "JPEG" else {}
    read = photo.decode(pictures.pillow(image, source, icc_profile=profiles.cmyk(), **quality))
    expected = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profiles.cmyk())),
        ImageCms.createProfile("sRGB"),
        "CMYK",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    ).apply(image)
    np.testing.assert_allclose(read.pixels.astype(int), np.asarray(expected).astype(int), atol=3)
    assert read.pixels[SIDE // 2, SIDE * 7 // 2].max() <= 8, "the darkest ink is black"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab_tiffs_become_srgb(photometric, dtype):
    wanted = patches(SATURATED) / 255 * 0.9 + 0.05
    lab = profiles.rgb_lab(wanted, "srgb")
    scale = 1 if dtype == np.uint8 else 256
    if photometric == "cielab":
        top = 255 if dtype == np.uint8 else 65535
        colour = np.rint(lab[..., 1:] * scale).astype(np.int32) % (256 * scale)
    else:
        top, colour = 255 * scale, np.rint((lab[..., 1:] + 128) * scale)
    samples = np.dstack([np.rint(lab[..., :1] / 100 * top), colour]).astype(dtype)
    data = pictures.tiff(samples, photometric=photometric, iccprofile=b"\0\0\0\x80 a Lab profile".ljust(128))
    read = photo.decode(data)
    assert read.pixels.dtype == dtype and read.meta.metadata.icc == b""
    assert read.meta.warnings == ("the colours were converted from Lab to sRGB",)
    delta_e = deltaE_ciede2000(profiles.rgb_lab(patch_means(read.pixels), "srgb"), lab[0, SIDE // 2 :: SIDE])
    assert delta_e.max() < (1.2 if dtype == np.uint8 else 0.1)


def test_profiles_are_built_in_the_sandbox():
    plain = pictures.pillow(patches(SATURATED), "PNG")
    lab = pictures.tiff(patches(SATURATED), photometric="icclab")
    for data in (with_chunks(plain, chrm("p3"), gama(1.8)), with_chunks(plain, chrm("p3")), lab):
        inside, outside = sandbox.decode(data, max_pixels=10**6), photo.decode(data)
        assert inside.meta == outside.meta
        np.testing.assert_array_equal(inside.pixels, outside.pixels)
