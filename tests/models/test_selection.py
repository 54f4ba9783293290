"""How "best", "fast" and "auto" select a model."""

from pathlib import Path

import pytest

import restorer
from restorer import InvalidOption, Options
from restorer.models import download, registry, selection, sources
from tests.conftest import photo_like, png, save_network

LITE, GENERAL, X4PLUS, X2PLUS = (
    registry.BUILT_IN,
    "realesr-general-x4v3",
    "RealESRGAN_x4plus",
    "RealESRGAN_x2plus",
)
LARGE = 600_000  # pixels


@pytest.fixture(autouse=True)
def default_threshold(monkeypatch):
    monkeypatch.delenv("AUTO_CPU_MEGAPIXELS")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(sources, "_PACKAGE", "no_such_package")


def write_files(weights: Path, *names: str) -> None:
    """Create sparse files of the right sizes."""
    for name in names:
        with (weights / f"{name}.pth").open("wb") as file:
            file.truncate(registry.find(name, weights).bytes)


def selected(weights: Path, model: str, pixels: int = 0, **options) -> str:
    r = restorer.Restorer(weights=weights, device="cpu", model=model, **options)
    return r.model(r.options, pixels).name


@pytest.mark.parametrize(
    ("present", "model", "outscale", "expected"),
    [
        ("", "best", 4, X4PLUS),
        ("", "best", 2, X4PLUS),
        (X2PLUS, "best", 2, X2PLUS),
        (X2PLUS, "best", 2.5, X4PLUS),
        ("", "fast", 4, LITE),
        (GENERAL, "fast", 4, LITE),
        ("realesr-animevideov3", "fast", 4, LITE),
        ("", "auto", 4, X4PLUS),
        (f"{GENERAL} RealESRNet_x4plus", "auto", 4, X4PLUS),
        (X2PLUS, "auto", 1.5, X2PLUS),
    ],
)
def test_presets_with_the_weights_package(present, model, outscale, expected, tmp_path):
    write_files(tmp_path, *present.split())
    assert selected(tmp_path, model, outscale=outscale) == expected


@pytest.mark.parametrize(
    ("present", "model", "outscale", "expected"),
    [
        ("", "auto", 4, LITE),
        (GENERAL, "auto", 4, GENERAL),
        (f"{X4PLUS} {GENERAL}", "auto", 4, X4PLUS),
        (f"{X4PLUS} {X2PLUS}", "auto", 2, X2PLUS),
        ("RealESRNet_x4plus", "auto", 4, "RealESRNet_x4plus"),
        (X2PLUS, "auto", 4, X2PLUS),
        ("realesr-animevideov3", "auto", 4, LITE),
        ("", "best", 4, X4PLUS),  # downloaded
        ("", "fast", 4, LITE),
    ],
)
def test_presets_without_the_weights_package(present, model, outscale, expected, tmp_path, no_package):
    write_files(tmp_path, *present.split())
    assert selected(tmp_path, model, outscale=outscale) == expected


@pytest.mark.parametrize("model", ["auto", "best", "fast"])
def test_denoise_below_1_selects_the_general_model(model, tmp_path):
    assert selected(tmp_path, model, denoise=0.5) == GENERAL
    assert selected(tmp_path, model, LARGE, denoise=0.5) == GENERAL


def test_auto_selects_a_faster_model_for_a_large_photo_only_on_a_cpu(tmp_path):
    assert selected(tmp_path, "auto", 500_000) == X4PLUS
    assert selected(tmp_path, "auto", 500_001) == GENERAL  # downloaded
    assert selected(tmp_path, "best", LARGE) == X4PLUS
    assert selected(tmp_path, X4PLUS, LARGE) == X4PLUS
    assert selected(tmp_path, "auto", LARGE, auto_cpu_megapixels=1) == X4PLUS
    assert selected(tmp_path, "auto", 1, auto_cpu_megapixels=0) == GENERAL
    on_gpu = restorer.Restorer(weights=tmp_path, device="vulkan")
    assert on_gpu.model(on_gpu.options, LARGE).name == X4PLUS


def test_threshold_is_read_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTO_CPU_MEGAPIXELS", "0.7")
    assert selected(tmp_path, "auto", LARGE) == X4PLUS
    assert selected(tmp_path, "auto", LARGE, auto_cpu_megapixels=0.1) == GENERAL
    for value in ("-1", "nan", "much"):
        monkeypatch.setenv("AUTO_CPU_MEGAPIXELS", value)
        with pytest.raises(InvalidOption, match=f"AUTO_CPU_MEGAPIXELS is .*{value}.*; it must be"):
            selection.auto_cpu_megapixels()


def test_large_photo_falls_back_to_the_built_in_model_without_a_download(tmp_path, rng, monkeypatch):
    attempts = []
    ensure = download.ensure

    def record(model, *arguments):
        attempts.append(model.name)
        return ensure(model, *arguments)

    monkeypatch.setattr(download, "ensure", record)
    monkeypatch.setattr(download, "addresses", lambda model: iter(()))
    r = restorer.Restorer(weights=tmp_path, device="cpu:torch", face_enhance="off", auto_cpu_megapixels=0)
    photo = png(photo_like(rng, 20, 20))
    first, second = r.restore(photo), r.restore(photo)
    assert attempts == [GENERAL, LITE], "one download attempt only"
    assert (first.model, first.source, second.model) == (LITE, "built in", LITE)
    plan = r.plan(r.decode(photo))
    assert (plan.model.name, plan.reason) == (LITE, "large photo on a CPU: fast model")
    with pytest.raises(restorer.WeightsUnavailable):  # no fallback for an explicit name
        r.restore(photo, model=GENERAL)


def test_plan_has_a_reason_only_for_a_fallback_model(tmp_path, rng, no_package):
    r = restorer.Restorer(weights=tmp_path, device="cpu:torch", auto_cpu_megapixels=0)
    photo = r.decode(png(photo_like(rng, 20, 20)))
    assert r.plan(photo, model="fast").reason == ""
    write_files(tmp_path, GENERAL)
    assert r.plan(photo).model.name == GENERAL
    assert r.plan(photo).reason == "", "the best model present needs no reason"


@pytest.mark.parametrize("name", ["a_swinir", "truncated", "scale_1", GENERAL])
def test_auto_never_selects_a_custom_file(name, tmp_path, no_package):
    path = tmp_path / f"custom/{name}.safetensors"
    save_network(path, seed=1, scale=1 if name == "scale_1" else 4)
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    for model in ("auto", "fast"):
        for pixels in (0, LARGE):
            assert not selected(tmp_path, model, pixels).startswith("custom/")


def test_truncated_official_file_is_not_present(tmp_path, no_package):
    write_files(tmp_path, X4PLUS)
    assert selected(tmp_path, "auto") == X4PLUS
    with (tmp_path / f"{X4PLUS}.pth").open("r+b") as file:
        file.truncate(1000)
    assert selected(tmp_path, "auto") == LITE


def test_option_defaults_and_aliases():
    assert Options().model == "auto"
    for value, expected in ((True, "on"), (False, "off"), ("auto", "auto")):
        assert Options(face_enhance=value).face_enhance == expected


def test_offline_auto_selects_a_present_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert selected(tmp_path, "auto", LARGE) == LITE
