"""All pages and all frames of a file: Pillow, tifffile and OpenCV write and read them."""

import io
import struct
from collections.abc import Container

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

import restorer
from restorer import sequences
from restorer.errors import (
    Cancelled,
    DamagedImage,
    ImageTooLarge,
    InvalidOption,
    UnsuitableOption,
    WeightsUnavailable,
)
from restorer.images import fading, photo, sandbox
from restorer.images.formats import animation
from restorer.images.formats.metadata import Item, RawMetadata
from restorer.options import Limits, Sequences
from restorer.result import UNFADED
from tests import broken, pictures, profiles
from tests.conftest import photo_like, save_network

ALL = Sequences(pages=True, frames=True)
DURATIONS = [50, 100, 200, 150]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> restorer.Restorer:
    folder = tmp_path_factory.mktemp("weights")
    save_network(folder / "custom/tiny.safetensors", seed=1)
    return restorer.Restorer(weights=folder, model="custom/tiny", outscale=2, face_enhance="off")


def tiff_of(pages: list[np.ndarray], *, at: Container[int] = ()) -> bytes:
    """Return a TIFF file of these pages, of which those `at` are marked as thumbnails."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for number, page in enumerate(pages):
            kind = "rgb" if page.ndim == 3 else "minisblack"
            file.write(page, photometric=kind, subfiletype=int(number in at), metadata=None)
    return out.getvalue()


def heic_of(pages: list[np.ndarray]) -> bytes:
    file, out = pillow_heif.HeifFile(), io.BytesIO()
    for page in pages:
        file.add_from_pillow(Image.fromarray(page))
    file.save(out, quality=-1, chroma=444)
    return out.getvalue()


def moving(rng: np.random.Generator, *, alpha: bool = False) -> list[np.ndarray]:
    """Four frames, the third of which equals the first."""
    frames = [photo_like(rng, 18, 24) for _ in range(4)]
    frames[2] = frames[0]
    if alpha:
        masks = [np.where(np.add.outer(np.arange(18), np.arange(24)) % (5 + n) > 1, 255, 0) for n in range(4)]
        masks[2] = masks[0]
        frames = [
            np.dstack([frame, mask]).astype(np.uint8) for frame, mask in zip(frames, masks, strict=True)
        ]
    return frames


def animated(frames: list[np.ndarray], image_format: str, **options: object) -> bytes:
    first, *rest = map(Image.fromarray, frames)
    options = {"lossless": True, "duration": DURATIONS, "loop": 3} | options
    return pictures.pillow(first, image_format.upper(), save_all=True, append_images=rest, **options)


def results(run: restorer.Restorer, data: bytes, **options: object) -> list[tuple[int, restorer.Result]]:
    return [*sequences.restore(run, data, ALL, **options)]


# Pages


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
def test_each_page_of_a_tiff_decodes(decode, rng):
    pages = [
        pictures.noise(rng, 20, 30),
        pictures.noise(rng, 5, 7),
        pictures.noise(rng, 31, 9, 1, deep=True),
        pictures.noise(rng, 12, 13),
    ]
    data = tiff_of(pages, at=[1])
    assert decode(data).meta.pages == 3 and "only the first picture" in decode(data).meta.warnings[0]
    for number, page in enumerate([pages[0], *pages[2:]]):
        read = decode(data, page=number)
        np.testing.assert_array_equal(read.pixels[..., 0], np.atleast_3d(page)[..., 0])
        assert (read.meta.depth, read.meta.warnings) == (page.itemsize * 8, ())
    with pytest.raises(DamagedImage):
        decode(data, page=3)


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
def test_each_picture_of_a_heic_decodes(decode, rng):
    pages = [photo_like(rng, 64, 80), photo_like(rng, 80, 64), photo_like(rng, 64, 64)]
    data = heic_of(pages)
    assert decode(data).meta.pages == 3
    for number, page in enumerate(pages):
        read = decode(data, page=number)
        np.testing.assert_allclose(read.pixels.astype(int), page, atol=4)
        assert read.meta.warnings == ()


def test_skipped_pages_are_not_restored(run, rng):
    pages = [photo_like(rng, 20, 30), photo_like(rng, 24, 18)]
    steps: list[tuple[int, int]] = []
    record = lambda *step: steps.append(step)  # noqa: E731
    ((number, result),) = results(run, tiff_of(pages), progress=record, skip=lambda number: number == 2)
    assert (number, result.before.width) == (1, 30) and steps[-1] == (1, 1)


def test_frames_have_the_resolution_of_their_print(run, rng):
    data = animated(moving(rng), "webp")
    ((_, result),) = results(run, data, print_size="6x4mm")
    assert photo.decode(result.data).meta.metadata.dpi == pytest.approx((300, 300), abs=0.1)


def test_each_page_is_a_result_and_the_first_comes_last(run, rng):
    pages = [photo_like(rng, 20, 30), photo_like(rng, 24, 18)]
    steps: list[tuple[int, int]] = []
    written = results(run, tiff_of(pages), progress=lambda *step: steps.append(step), long_side=60)
    assert [number for number, _ in written] == [2, 1]
    for number, result in written:
        expected = run.restore(tiff_of([pages[number - 1]]), long_side=60)
        np.testing.assert_array_equal(result.after.pixels, expected.after.pixels)
        assert (result.width, result.height) == ((60, 40) if number == 1 else (45, 60))
        assert "only the first" not in " ".join(result.warnings)
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    ((number, only),) = sequences.restore(run, tiff_of(pages), Sequences(frames=True))
    assert number == 0 and "only the first picture" in " ".join(only.warnings)


def test_a_size_that_does_not_suit_a_page_is_not_wrong_usage(run, rng):
    pages = [photo_like(rng, 20, 30), photo_like(rng, 4, 5)]
    with pytest.raises(UnsuitableOption, match="8.* times|12.* times"):
        results(run, tiff_of(pages), long_side=60)


@pytest.mark.parametrize(
    ("image_format", "duration"), [("gif", 800_000), ("png", 70_001), ("webp", 20_000_000)]
)
def test_frames_that_are_shown_for_too_long_are_refused(rng, image_format, duration):
    frames = [photo_like(rng, 12, 16) for _ in range(2)]
    timing = animation.Timing((duration,) * 2, 0)
    with pytest.raises(ImageTooLarge, match=f"{image_format.upper()} cannot hold .* {duration / 1000:g} s"):
        animation.encode(frames, image_format, timing, RawMetadata(), 90)


@pytest.mark.parametrize("thumbnails", [0, 700])
def test_too_many_pages_are_refused(thumbnails, run):
    """Also if most of the directories that are read are thumbnails."""
    with pytest.raises(ImageTooLarge, match="limit is 999"):
        results(run, tiff_of([np.zeros((1, 1), np.uint8)] * 1001, at=range(1, 1 + thumbnails)))


def test_pages_that_lead_back_to_the_first_are_counted_once(rng):
    data = bytearray(tiff_of([pictures.noise(rng, 5, 7) for _ in range(3)]))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = file.pages[2].offset + 2 + 12 * len(file.pages[2].tags)
        data[end : end + 4] = struct.pack("<I", file.pages[0].offset)
    assert photo.decode(bytes(data)).meta.pages == 3


def test_a_thumbnail_after_the_picture_is_no_page(run, rng):
    data = tiff_of([pictures.noise(rng, 20, 30), pictures.noise(rng, 5, 7)], at=[1])
    meta = photo.decode(data).meta
    assert (meta.pages, meta.warnings, meta.metadata.others) == (1, (), (Item("thumbnail or mask"),))
    ((number, result),) = results(run, data)
    assert number == 0 and result.warnings == ("left out: thumbnail or mask",)


# Frames


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
@pytest.mark.parametrize("image_format", ["gif", "webp", "png"])
@pytest.mark.parametrize("alpha", [False, True])
def test_frames_are_those_that_opencv_shows(alpha, image_format, decode, rng):
    data = animated(moving(rng, alpha=alpha), image_format, disposal=2 if image_format == "gif" else 0)
    read = decode(data, frames=True)
    assert read.meta.warnings == () and read.meta.timing.durations == tuple(DURATIONS)
    _, expected = cv2.imdecodeanimation(np.frombuffer(data, np.uint8))
    frames = photo.split(read)
    assert len(frames) == len(expected.frames) == 4
    for frame, shown in zip(frames, expected.frames, strict=True):
        seen = np.ones(frame.pixels.shape[:2], bool) if frame.alpha is None else frame.alpha == 255
        np.testing.assert_array_equal(frame.pixels[seen], shown[..., 2::-1][seen])
        if alpha:
            np.testing.assert_array_equal(frame.alpha, shown[..., 3])


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_frames_smaller_than_the_animation_are_placed_on_what_remains(disposal):
    """Written byte by byte: 4 x 4 in red, then a green square at (1, 1), then a blue pixel at (3, 3)."""
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    data = b"GIF89a\4\0\4\0\xa1\0\0" + palette
    for colour, left, top, side in ((0, 0, 0, 4), (1, 1, 1, 2), (2, 3, 3, 1)):
        how = disposal if colour == 1 else 1
        data += bytes(
            [0x21, 0xF9, 4, how << 2 | 1, 5, 0, 3, 0, 0x2C, left, 0, top, 0, side, 0, side, 0, 0, 2]
        )
        bits, stream = 0, 0  # LZW of 3 bits, cleared before each pixel: clear is 4, the end 5
        for code in [code for _ in range(side * side) for code in (4, colour)] + [5]:
            stream, bits = stream | code << bits, bits + 3
        body = stream.to_bytes(-(-bits // 8), "little")
        data += bytes([len(body)]) + body + b"\0"
    frames = photo.split(photo.decode(data + b";", frames=True))
    red, green, blue = np.eye(3, dtype=np.uint8) * 255
    expected = np.tile(red, (4, 4, 1))
    expected[1:3, 1:3] = green
    np.testing.assert_array_equal(frames[1].pixels, expected)
    if disposal == 3:
        expected[1:3, 1:3] = red
    expected[3, 3] = blue
    hidden = np.zeros((4, 4), bool)
    hidden[1:3, 1:3] = disposal == 2
    np.testing.assert_array_equal(frames[2].pixels[~hidden], expected[~hidden])
    assert (frames[2].alpha is None) == (disposal != 2)
    assert frames[2].alpha is None or (frames[2].alpha == np.where(hidden, 0, 255)).all()


@pytest.mark.parametrize("image_format", ["gif", "webp", "png"])
@pytest.mark.parametrize("alpha", [False, True])
def test_an_animation_stays_one(alpha, image_format, run, rng, monkeypatch):
    data = animated(moving(rng, alpha=alpha), image_format, disposal=2 if image_format == "gif" else 0)
    frames = photo.split(photo.decode(data, frames=True))
    computed, steps = [], list[tuple[int, int]]()
    real = restorer.Restorer.restore
    monkeypatch.setattr(
        restorer.Restorer, "restore", lambda *a, **options: computed.append(1) or real(*a, **options)
    )
    ((number, result),) = results(run, data, progress=lambda *step: steps.append(step), quality=100)
    assert (number, result.format, len(computed)) == (0, image_format, 3), "equal frames are restored once"
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    _, shown = cv2.imdecodeanimation(np.frombuffer(result.data, np.uint8))
    assert list(shown.durations) == DURATIONS and len(shown.frames) == 4
    again = Image.open(io.BytesIO(result.data))
    assert (again.info["loop"], again.size) == (3, (48, 36))
    for frame, one in zip(frames, shown.frames, strict=True):
        expected = real(run, frame, format="png").after
        seen = np.ones((36, 48), bool) if expected.alpha is None else expected.alpha == 255
        difference = np.abs(expected.pixels.astype(int) - one[..., 2::-1])[seen]
        if expected.alpha is not None:
            np.testing.assert_array_equal(one[..., 3] >= 128, expected.alpha >= 128)
        assert difference.mean() < {"png": 1e-9, "webp": 8, "gif": 12}[image_format]
    assert ("256 colours" in " ".join(result.warnings)) == (image_format == "gif")


@pytest.mark.parametrize("options", [{"colour": "on"}, {"autopilot": True}], ids=lambda one: next(iter(one)))
def test_all_frames_get_the_same_colours(options, run, rng):
    patch = np.array([[[150, 120, 90]]], np.uint8)
    frames = [np.full((18, 48, 3), patch) for _ in range(3)]
    for number, frame in enumerate(frames):
        veiled = photo_like(rng, 18, 24) // (number + 2) + 60
        frame[:, 24:] = veiled
    data = animated(frames, "png", duration=50)
    ((_, result),) = results(run, data, model="custom/tiny", **options)
    assert result.options.colour == ("on" if options.get("colour") else "auto")
    shown = cv2.imdecodeanimation(np.frombuffer(result.data, np.uint8))[1].frames
    corners = {tuple(frame[20, 4, :3].tolist()) for frame in shown}
    ((_, plain),) = results(run, data)
    before = cv2.imdecode(np.frombuffer(plain.data, np.uint8), cv2.IMREAD_COLOR)
    assert len(corners) == 1 and tuple(before[20, 4].tolist()) not in corners
    np.testing.assert_array_equal(result.before.pixels, frames[0])
    assert [warning[:9] for warning in result.warnings] == (["autopilot"] if "autopilot" in options else [])


def test_frames_need_no_estimator_unless_colours_are_corrected(run, rng, monkeypatch, tmp_path):
    monkeypatch.setattr(fading, "FILE", tmp_path / "absent")
    fading._weights.cache_clear()
    data = animated(moving(rng), "png")
    assert results(run, data)
    with pytest.raises(WeightsUnavailable):
        results(run, data, colour="auto")


def test_frames_that_have_not_faded_say_so_once(run):
    full = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 18, 0).repeat(3, 2)
    ((_, result),) = results(run, animated([full, full[:, ::-1]], "png", duration=50), colour="auto")
    assert result.warnings == (UNFADED,)


def test_metadata_and_size_in_bytes_of_an_animation(run, rng):
    block = pictures.camera_exif()
    data = animated(moving(rng), "png", exif=block)
    ((_, result),) = results(run, data)
    tags = Image.open(io.BytesIO(result.data)).getexif()
    assert tags[0x010F] == "Maker" and '"format": "same"' in tags.get_ifd(0x8769)[0x9213]
    ((_, plain),) = results(run, data, keep_metadata=False)
    assert not Image.open(io.BytesIO(plain.data)).getexif()
    ((_, large),) = results(run, data, format="webp")
    with pytest.raises(InvalidOption, match="an animation cannot be recomposed"):
        run.recompose(large, strength=0.5)
    limit = len(large.data) * 3 // 4
    ((_, small),) = results(run, data, format="webp", max_bytes=limit)
    assert len(small.data) <= limit and "quality was lowered" in " ".join(small.warnings)


@pytest.mark.parametrize("orientation", [6, 8])
def test_orientation_is_applied_to_each_frame(orientation, rng):
    frames = moving(rng)
    data = animated(frames, "png", exif=pictures.camera_exif(orientation=orientation))
    for frame, stored in zip(photo.split(photo.decode(data, frames=True)), frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, np.rot90(stored, 3 if orientation == 6 else 1))
        assert frame.meta.stored == (24, 18)


def test_the_picture_that_is_no_frame_is_left_out(rng):
    frames = moving(rng)
    first, *rest = map(Image.fromarray, frames)
    data = pictures.pillow(first, "PNG", save_all=True, append_images=rest, default_image=True, duration=50)
    read = photo.split(photo.decode(data, frames=True))
    assert len(read) == 3
    np.testing.assert_array_equal(read[0].pixels, frames[1])


def test_a_still_picture_is_restored_as_usual(run, rng):
    data = pictures.pillow(photo_like(rng, 18, 24), "GIF")
    ((number, result),) = results(run, data)
    assert (number, result.format) == (0, "png")
    np.testing.assert_array_equal(result.after.pixels, run.restore(data).after.pixels)


def test_a_still_picture_has_the_note_of_its_file(run, rng):
    data = pictures.pillow(photo_like(rng, 18, 24), "JPEG", quality=30)
    ((_, result),) = results(run, data, autopilot=True)
    assert "strong JPEG compression" in result.warnings[0]
    assert result.warnings == run.restore(data, autopilot=True).warnings


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_a_grey_animation_looks_the_same_without_its_profile(image_format, run, rng):
    """WebP holds no profile of grey: its samples are converted to sRGB."""
    frames = [frame[..., 1] for frame in moving(rng)]
    data = animated(frames, "png", icc_profile=profiles.grey(linear=True))
    ((_, result),) = results(run, data, format=image_format, quality=100)
    read = photo.decode(result.data, frames=True)
    assert not read.meta.warnings and bool(read.meta.metadata.icc) == (image_format == "png")


def test_frames_of_a_grey_animation_keep_its_profile(rng):
    frames = [frame[..., 1] for frame in moving(rng)]
    profile = profiles.grey()
    read = photo.decode(animated(frames, "png", icc_profile=profile), frames=True)
    assert (read.meta.grey, read.meta.metadata.icc, read.meta.warnings) == (True, profile, ())
    np.testing.assert_array_equal(read.pixels, np.concatenate(frames)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("decode", [photo.decode, sandbox.decode])
def test_pixels_of_all_frames_count(decode, run, rng):
    data = animated(moving(rng), "gif")
    pixels = 4 * 18 * 24
    assert decode(data, frames=True, max_pixels=pixels).pixels.shape == (72, 24, 3)
    with pytest.raises(ImageTooLarge, match="4 frames of 24 x 18"):
        decode(data, frames=True, max_pixels=pixels - 1)
    limited = restorer.Restorer(
        weights=run.weights, model="custom/tiny", face_enhance="off", limits=Limits(pixels, 16 * pixels - 1)
    )
    with pytest.raises(ImageTooLarge, match="4 frames of 96 x 72"):
        results(limited, data, outscale=4)


@pytest.mark.parametrize("many", [broken.gif, broken.webp, broken.apng])
def test_too_many_frames_are_refused_in_the_sandbox(many):
    with pytest.raises(ImageTooLarge, match="frames; the limit is 10000"):
        sandbox.decode(many(20_000), frames=True)


@pytest.mark.parametrize("disposal", [1, 2, 3])
def test_a_frame_larger_than_the_animation_is_refused(disposal, rng):
    data = animated(moving(rng), "gif", disposal=disposal)
    at = data.rindex(b"\x2c\0\0\0\0") + 5
    with pytest.raises((DamagedImage, ImageTooLarge)):
        sandbox.decode(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :], frames=True)


def test_a_cancelled_animation_stops_within_one_step(run, rng):
    calls = []

    def cancel(done: int, total: int) -> None:
        calls.append((done, total))
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        results(run, animated(moving(rng), "gif"), progress=cancel)
    assert [done for done, _ in calls] == [0, 1]


def test_formats_without_animation_are_wrong_usage(run, rng):
    with pytest.raises(InvalidOption, match="format is jpeg; for frames use one of same, webp, png"):
        results(run, animated(moving(rng), "gif"), format="jpeg")


@pytest.mark.parametrize("image_format", ["gif", "webp", "png"])
def test_truncated_animations_are_damaged(image_format, rng):
    data = animated(moving(rng), image_format)
    for cut in range(16, len(data) - 60, len(data) // 17):
        with pytest.raises(DamagedImage):
            photo.decode(data[:-cut], frames=True)
