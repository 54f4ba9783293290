import hashlib
import io
import json
import threading
import time
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import restorer
from restorer import (
    Cancelled,
    ImageTooLarge,
    InvalidOption,
    Limits,
    OutOfMemory,
    UnknownModel,
    UnsupportedImage,
)
from restorer.images import colour, photo
from restorer.images.formats import jxl
from restorer.inference import backends, engine, memory
from restorer.progress import PassProgress
from tests.conftest import photo_like, png, save_network


@pytest.fixture
def weights(tmp_path):
    save_network(tmp_path / "custom/tiny.safetensors", seed=1)
    save_network(tmp_path / "custom/other.pth", seed=2)
    save_network(tmp_path / "custom/twice.pth", seed=3, scale=2)
    return tmp_path


def test_result_is_larger_and_its_file_holds_its_pixels(weights, rng):
    data = png(photo_like(rng, 30, 41))
    result = restorer.load("custom/tiny", weights=weights).restore(data, outscale=4)
    assert (result.width, result.height, result.format) == (164, 120, "png")
    assert result.model == "custom/tiny"
    assert result.seconds > 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.data))), result.after.pixels)
    np.testing.assert_array_equal(result.before.pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_same_bytes_and_options_give_the_same_bytes(weights, rng):
    data = png(photo_like(rng, 40, 40))
    first = restorer.load("custom/tiny", weights=weights).restore(data)
    second = restorer.load("custom/tiny", weights=weights).restore(data)
    assert first.data == second.data


def test_named_model_is_used_or_unknown_model_is_raised(weights, rng):
    data = png(photo_like(rng, 20, 20))
    run = restorer.Restorer(weights=weights)
    results = {name: run.restore(data, model=name) for name in ("custom/tiny", "custom/other")}
    assert results["custom/tiny"].data != results["custom/other"].data
    assert [result.model for result in results.values()] == list(results)
    with pytest.raises(UnknownModel, match="custom/tiny"):
        run.restore(data, model="custom/tinny")
    with pytest.raises(UnknownModel):
        run.restore(data, model="GFPGANv1.3")


@pytest.mark.parametrize("mode", ["RGB", "16 bit", "RGBA"])
def test_strength_blends_bicubic_and_restored_photo(weights, rng, mode):
    pixels = photo_like(rng, 30, 41)
    if mode == "16 bit":
        pixels = pixels.astype(np.uint16) * 257
    if mode == "RGBA":
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    data = cv2.imencode(".png", pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])[1].tobytes()
    run = restorer.load("custom/tiny", weights=weights)
    none, half, full = (run.restore(data, strength=strength) for strength in (0, 0.5, 1))
    assert run.restore(data).data == full.data
    bicubic = cv2.resize(pixels[..., :3], (164, 120), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(none.after.pixels, bicubic)
    middle = (none.after.pixels.astype(int) + full.after.pixels) / 2
    assert np.abs(half.after.pixels - middle).max() <= 0.5
    assert run.recompose(full, strength=0.5).data == half.data
    assert run.recompose(half, strength=1).data == full.data
    assert json.loads(json.dumps(half.receipt))["options"]["strength"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outscale": 0.5}, "outscale is 0.5; it must be from 1 to 8"),
        ({"outscale": float("nan")}, "outscale is nan"),
        ({"outscale": 9}, "from 1 to 8"),
        ({"outscale": 10**400}, "outscale is too large"),
        ({"quality": 0}, "from 1 to 100"),
        ({"tile": 31}, "from 32"),
        ({"format": "gif"}, "'gif'"),
        ({"denoise": -0.1}, "from 0 to 1"),
        ({"denoise": 0.5}, "custom/tiny does not support denoise 0.5; use 1"),
        ({"outscale": "4"}, "outscale is '4'; it must be a number"),
        ({"outscale": None}, "it must be a number"),
        ({"quality": 90.5}, "it must be a whole number"),
        ({"keep_metadata": "no"}, "true or false"),
        ({"model": None}, "model is None; it must be a string"),
        ({"sharpen": 1}, "unknown option 'sharpen'"),
    ],
)
def test_invalid_option_message_has_value_and_range(weights, rng, options, message):
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    with pytest.raises(InvalidOption, match=message):
        run.restore(png(photo_like(rng, 20, 20)), **options)


def test_every_option_changes_the_result(weights, rng):
    save_network(weights / "custom/realesr-general-x4v3.pth", seed=4)
    save_network(weights / "custom/realesr-general-wdn-x4v3.pth", seed=5)
    run = restorer.Restorer(
        weights=weights, model="custom/realesr-general-x4v3", format="jpeg", device="cpu:torch"
    )
    photo = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8825).update({1: "N", 2: (10.0, 20.0, 30.0)})
    Image.fromarray(photo_like(rng, 80, 90) // 2 + 70).save(photo, "JPEG", exif=exif)  # faded
    plain = run.restore(photo.getvalue())
    changes = {
        "model": "custom/tiny",
        "outscale": 3,
        "strength": 0.6,
        "long_side": 200,
        "print_size": "2x2cm",
        "dpi": 123,
        "denoise": 0.4,
        "colour": "auto",
        "format": "png",
        "quality": 60,
        "max_bytes": len(plain.data) - 100,
        "keep_metadata": False,
        "remove_gps": True,
    }
    # colour_strength, autopilot and tile are tested below, the face options in test_pipeline_faces.py, and
    # those of repair in repair/test_pipeline.py
    others = {"tile", "colour_strength", "autopilot"} | {
        name for name in restorer.Options.names() if name.startswith(("face_", "repair"))
    }
    assert set(changes) | others == set(restorer.Options.names())
    for name, value in changes.items():
        assert _contents(run.restore(photo.getvalue(), **{name: value})) != _contents(plain), name
    half, full = (
        run.restore(photo.getvalue(), colour="auto", colour_strength=share).after for share in (0.5, 1)
    )
    assert (half.pixels != full.pixels).any()
    tiles = [_tile_count(run, photo.getvalue(), tile=tile) for tile in (32, 64, 0)]
    assert tiles[0] > tiles[1] > tiles[2]


def _contents(result):
    """Pixels and metadata of a result without its history, which contains every option."""
    image = Image.open(io.BytesIO(result.data))
    exif = image.getexif()
    details = {tag: value for tag, value in exif.get_ifd(0x8769).items() if tag != 0x9213}
    gps = dict(exif.get_ifd(0x8825))
    return image.format, image.size, image.tobytes(), image.info.get("dpi"), exif.get(0x010F), details, gps


def test_colours_are_corrected_before_anything_else(weights, rng):
    faded = photo_like(rng, 40, 50) // 2 + 70
    run = restorer.Restorer(weights=weights, model="custom/tiny", device="cpu:torch", face_enhance="off")
    result = run.restore(png(faded), colour="auto")
    corrected = colour.apply(result.before, result.options)
    np.testing.assert_array_equal(result.before.pixels, faded)
    np.testing.assert_array_equal(result.after.pixels, run.restore(png(corrected.pixels)).after.pixels)
    assert result.receipt["options"]["colour"] == "auto" and not result.warnings
    plain = run.recompose(result, strength=0).after.pixels
    enlarged = cv2.resize(corrected.pixels, (200, 160), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(plain, enlarged)


def test_a_photo_without_fading_is_restored_as_before(weights, rng):
    pixels = photo_like(rng, 40, 50)
    pixels[:, :20] = np.linspace(0, 255, 40).astype(np.uint8)[:, None, None]
    data = png(pixels)
    run = restorer.Restorer(weights=weights, model="custom/tiny", device="cpu:torch", face_enhance="off")
    plain, result = run.restore(data), run.restore(data, colour="auto")
    np.testing.assert_array_equal(result.after.pixels, plain.after.pixels)
    assert result.warnings == ("no fading was found; the colours are unchanged",)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_receipt_is_stored_in_the_file(weights, rng, image_format):
    run = restorer.Restorer(weights=weights, model="custom/tiny", format=image_format)
    photo = png(photo_like(rng, 40, 50))
    result = run.restore(photo, quality=90)
    history = _history(result.data)
    receipt = json.loads(history)
    assert receipt == result.receipt
    assert receipt["sha256"] == hashlib.sha256((weights / "custom/tiny.safetensors").read_bytes()).hexdigest()
    assert (receipt["model"], receipt["options"]["quality"]) == ("custom/tiny", 90)
    assert receipt["software"] == f"Neural Image Restore {restorer.__version__}"
    twice = _history(run.restore(result.data).data).splitlines()
    assert twice[0] == history and len(twice) == 2, "the history of the input is preserved"
    without = run.restore(photo, keep_metadata=False).data
    assert not Image.open(io.BytesIO(without)).getexif().get_ifd(0x8769)


def _history(data):
    return Image.open(io.BytesIO(data)).getexif().get_ifd(0x8769)[0x9213]


def test_stages_add_up_and_retries_are_counted(weights, rng):
    run = restorer.Restorer(weights=weights, model="custom/tiny", device="cpu:torch")
    data = png(photo_like(rng, 90, 80))
    plain = run.restore(data, face_enhance="off")
    stages = {"decode", "load", "repair", "colour", "faces", "enlarge", "encode"}
    assert set(plain.stages) == stages and plain.retries == 0
    assert plain.seconds == pytest.approx(sum(plain.stages.values()))
    _, engine = run.networks.cache.loaded["custom/tiny"]
    (compute,) = engine._backend.compute[:1]

    def small_only(*windows):
        if windows[0].shape[-2] > 64:
            raise OutOfMemory("no room")
        return compute(*windows)

    engine._backend = engine._backend._replace(compute=[small_only, *engine._backend.compute[1:]])
    retried = run.restore(data, face_enhance="off")
    assert retried.retries > 0 and run.recompose(retried, quality=80).retries == retried.retries
    # of 8 features: oneDNN computes so small a network differently for tiles of another size
    assert np.abs(retried.after.pixels.astype(int) - plain.after.pixels).max() <= 1


def _tile_count(run, data, **options):
    steps = []
    run.restore(data, progress=lambda done, total: steps.append((done, total)), **options)
    assert steps[0][0] == 0
    done, total = steps[-1]
    assert done == total
    return total


def test_decoded_photo_gives_the_same_result_as_its_bytes(weights, rng):
    data = png(photo_like(rng, 20, 20))
    run = restorer.load("custom/tiny", weights=weights)
    assert run.restore(photo.decode(data)).data == run.restore(data).data
    with pytest.raises(ImageTooLarge, match="0.0 megapixels; the limit is 0.0"):
        restorer.Restorer(weights=weights, limits=Limits(100, 100)).restore(photo.decode(data))


def test_path_instead_of_bytes_raises_type_error(weights):
    with pytest.raises(TypeError, match="data is str; it must be bytes"):
        restorer.load("custom/tiny", weights=weights).restore("cat.png")


@pytest.mark.parametrize(
    ("device", "half"),
    [("cpu:torch", True), ("vulkan", True), ("cpu:bfloat16", True), ("cpu:bfloat16", False)],
)
def test_half_precision_of_a_backend_with_its_own_is_rejected(weights, device, half, monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16_kernels", lambda: True)
    with pytest.raises(InvalidOption, match=device):
        restorer.load("custom/tiny", weights=weights, device=device, half=half)


def test_recompose_keeps_what_a_look_said(weights, rng):
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    result = run.restore(png(photo_like(rng, 30, 40)), autopilot=True)
    (note,) = [warning for warning in result.warnings if warning.startswith("autopilot: ")]
    assert run.recompose(result, strength=0.5).warnings.count(note) == 1


def test_numpy_scalars_are_accepted_as_options(weights, rng):
    data = png(photo_like(rng, 20, 20))
    run = restorer.load("custom/tiny", weights=weights)
    plain = run.restore(data, outscale=2, quality=80)
    assert run.restore(data, outscale=np.float32(2), quality=np.int64(80)).data == plain.data
    assert type(run.restore(data, outscale=np.float64(2)).options.outscale) is float
    for options in ({"outscale": True}, {"quality": 1.5}, {"keep_metadata": 1}, {"outscale": "2"}):
        with pytest.raises(InvalidOption):
            run.restore(data, **options)


def test_photo_that_does_not_fit_in_memory_says_so(weights, rng, monkeypatch):
    run = restorer.load("custom/tiny", weights=weights, face_enhance="off", device="cpu:torch")
    data = png(photo_like(rng, 900, 20))
    whole = run.restore(data)
    assert whole.parts == 1 and not whole.warnings
    monkeypatch.setattr(memory, "free", lambda _: 1_000_000)
    result = run.restore(data, tile=32)
    assert result.parts > 1
    assert f"upscaled in {result.parts} parts" in result.warnings[0]
    assert run.recompose(result, quality=80).warnings == result.warnings
    assert np.abs(result.after.pixels.astype(int) - whole.after.pixels).max() <= 1


def test_plan_predicts_size_model_and_tiles(weights, rng):
    pixels = photo_like(rng, 150, 90)
    alpha = np.dstack([pixels, np.full((150, 90), 99, np.uint8)])
    run = restorer.Restorer(weights=weights, model="custom/tiny", tile=32)
    before = photo.decode(png(pixels))
    first = run.plan(before)
    assert (first.width, first.height, first.tiles, first.seconds) == (360, 600, None, None), "not loaded"
    run.measure()
    for image in (pixels, alpha):
        for outscale in (2, 4):
            plan = run.plan(photo.decode(png(image)), outscale=outscale)
            result = run.restore(png(image), outscale=outscale)
            assert _tile_count(run, png(image), outscale=outscale) == plan.tiles
            assert (plan.width, plan.height, plan.model.name) == (result.width, result.height, result.model)
            assert plan.seconds > 0
    absent = run.plan(before, model="RealESRGAN_x4plus")
    assert absent.tiles is None and absent.seconds is None and absent.model.name == "RealESRGAN_x4plus"


def test_models_are_timed_where_a_format_cannot_be_written(weights, rng, monkeypatch):
    monkeypatch.setattr(jxl, "library", mock.Mock(side_effect=UnsupportedImage("no libjxl")))
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    before = photo.decode(png(photo_like(rng, 100, 100)))
    run.measure()
    assert run.plan(before).seconds > 0 and run._estimator.expected("avif", 1) > 0


def test_recompose_corrects_the_fading_of_the_first_restoration(weights, rng):
    run = restorer.load("custom/tiny", weights=weights, colour="on")
    photos = [photo.decode(png(photo_like(rng, 40, 40) // divisor + 90)) for divisor in (2, 8)]
    fading = colour.measure(photos[1].pixels, None)
    result = run.restore(photos[0], fading=fading)
    half = run.restore(photos[0], fading=fading, strength=0.5)
    assert run.recompose(result, strength=0.5).data == half.data
    assert run.restore(photos[0]).data != result.data


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_network_that_does_not_fit_raises_out_of_memory(weights, rng, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", full)
    for options in ({}, {"repair": "on"}):
        run = restorer.Restorer(weights=weights, model="custom/tiny", device="cpu:torch")
        with pytest.raises(OutOfMemory):
            run.restore(png(photo_like(rng, 20, 20)), **options)


def test_a_small_print_of_a_large_photo_has_at_most_the_largest_resolution():
    options = restorer.Options(print_size="30x20mm").sized(12_500, 8_000)
    assert (options.outscale, options.dpi) == (1, 10_000)


def test_estimate_follows_measured_photos(weights, rng):
    run = restorer.load("custom/tiny", weights=weights)
    before = photo.decode(png(photo_like(rng, 100, 100)))
    run._estimator.learn("custom/tiny", 3.0, 1000)
    assert run.plan(before).seconds == pytest.approx(30)
    run._estimator.learn("custom/tiny", 10.0, 10_000)
    assert 10 < run.plan(before).seconds < 11, "a large photo weighs more than a small tile"
    run._estimator._seen["custom/tiny"] = (7.0, 10_000)
    result = run.restore(png(photo_like(rng, 100, 100)))
    assert run._estimator._seen["custom/tiny"][0] == pytest.approx(result.stages["enlarge"] + 7 / 4)
    run._estimator._seen["custom/tiny"] = (10.0, 100_000)
    for _ in range(6):
        run._estimator.learn("custom/tiny", 0.1, 256)
    assert run._estimator.expected("custom/tiny", 100_000) < 12, "small photos hardly count"
    run.restore(png(photo_like(rng, 100, 100)), format="jpeg", max_bytes=20_000)
    assert "jpeg" not in run._estimator._seen, "the time of several encodings"


def test_plan_says_that_a_lossless_file_has_no_quality_to_lower(weights, rng):
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    before = photo.decode(png(photo_like(rng, 20, 20)))
    note = "PNG has no quality to lower: a result above 5,000 bytes fails"
    assert note in run.plan(before, max_bytes=5000).warnings
    assert not run.plan(before).warnings
    assert note not in run.plan(before, max_bytes=5000, format="jpeg").warnings


def test_first_estimate_includes_encoding(weights, rng):
    run = restorer.Restorer(weights=weights, model="custom/tiny")
    before = photo.decode(png(photo_like(rng, 100, 100)))
    run.measure()
    network = run._estimator.expected("custom/tiny", 100 * 100)
    for image_format in ("png", "jpeg", "webp", "tiff", "avif", "jxl"):
        plan = run.plan(before, format=image_format)
        encoding = run._estimator.expected(image_format, plan.width * plan.height)
        assert 0 < encoding == pytest.approx(plan.seconds - network), image_format
    run._estimator.learn("png", 50.0, 400 * 400)
    assert run.plan(before).seconds > 5


def test_too_large_photos_are_rejected_before_a_model_is_loaded(tmp_path, rng):
    data = png(photo_like(rng, 50, 50))
    run = restorer.Restorer(weights=tmp_path, limits=Limits(input_pixels=2499))
    with pytest.raises(ImageTooLarge, match="50 x 50"):
        run.restore(data)
    run = restorer.Restorer(weights=tmp_path, limits=Limits(output_pixels=39_999))
    with pytest.raises(ImageTooLarge, match="200 x 200"):
        run.restore(data)
    wide = png(np.zeros((2, 9000, 3), np.uint8))
    with pytest.raises(ImageTooLarge, match="16383"):
        restorer.Restorer(weights=tmp_path).restore(wide, format="webp", outscale=2)


def test_cancelled_stops_within_one_tile(weights, rng):
    data = png(photo_like(rng, 200, 200))
    steps = []

    def stop(done, total):
        steps.append(done)
        if done == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        restorer.Restorer(weights=weights, model="custom/tiny").restore(data, tile=32, progress=stop)
    assert steps == [0, 1]


def test_threads_get_their_own_results_and_never_compute_two_tiles_at_once(weights, rng, monkeypatch):
    running, most = 0, 0
    compute = engine.Guarded.__call__

    def watched(self, *windows):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        out = compute(self, *windows)
        running -= 1
        return out

    monkeypatch.setattr(engine.Guarded, "__call__", watched)
    run = restorer.Restorer(weights=weights)
    jobs = [
        (png(photo_like(rng, 60 + 7 * i, 90 - 5 * i)), ("custom/tiny", "custom/other", "custom/twice")[i % 3])
        for i in range(6)
    ]
    sequential = [run.restore(data, model=name, tile=32).data for data, name in jobs]
    concurrent = [None] * len(jobs)

    def work(i):
        concurrent[i] = run.restore(jobs[i][0], model=jobs[i][1], tile=32).data

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert concurrent == sequential
    assert most == 1


def test_model_is_loaded_once(weights, rng, monkeypatch):
    from restorer.models import loader

    loaded = []
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda source: loaded.append(source) or load(source))
    run = restorer.load("custom/tiny", weights=weights)
    for _ in range(3):
        run.restore(png(photo_like(rng, 20, 20)))
    assert len(loaded) == 1


def test_progress_never_exceeds_its_total():
    """A pass may be repeated after its last step was reported."""
    steps = []
    passes = PassProgress(lambda *step: steps.append(step), 1)
    for _ in range(2):
        passes(0, 3)
        passes(3, 3)
    assert steps == [(0, 3), (3, 3), (3, 6), (6, 6)]
