"""What "best", "fast" and "auto" take."""

from pathlib import Path

import pytest

import restorer
from restorer import InvalidOption, Options
from restorer.models import download, registry, selection, sources
from tests.conftest import photo_like, png, save_network

LITE, GENERAL, X4PLUS, X2PLUS = (
    "restore-lite-x4",
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


def put(weights: Path, *names: str) -> None:
    """Files of the right sizes, without content."""
    for name in names:
        with (weights / f"{name}.pth").open("wb") as file:
            file.truncate(registry.find(name, weights).bytes)


def chosen(weights: Path, model: str, pixels: int = 0, **options) -> str:
    run = restorer.Restorer(weights=weights, device="cpu", model=model, **options)
    return run.model(run.options, pixels).name


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
def test_presets_with_the_package(present, model, outscale, expected, tmp_path):
    put(tmp_path, *present.split())
    assert chosen(tmp_path, model, outscale=outscale) == expected


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
def test_presets_without_the_package(present, model, outscale, expected, tmp_path, no_package):
    put(tmp_path, *present.split())
    assert chosen(tmp_path, model, outscale=outscale) == expected


@pytest.mark.parametrize("model", ["auto", "best", "fast"])
def test_less_denoising_takes_the_one_model_that_has_it(model, tmp_path):
    assert chosen(tmp_path, model, denoise=0.5) == GENERAL
    assert chosen(tmp_path, model, LARGE, denoise=0.5) == GENERAL


def test_auto_takes_a_faster_model_for_a_large_photo_on_a_cpu_only(tmp_path):
    assert chosen(tmp_path, "auto", 500_000) == X4PLUS
    assert chosen(tmp_path, "auto", 500_001) == GENERAL  # fetched
    assert chosen(tmp_path, "best", LARGE) == X4PLUS
    assert chosen(tmp_path, X4PLUS, LARGE) == X4PLUS
    assert chosen(tmp_path, "auto", LARGE, auto_cpu_megapixels=1) == X4PLUS
    assert chosen(tmp_path, "auto", 1, auto_cpu_megapixels=0) == GENERAL
    on_gpu = restorer.Restorer(weights=tmp_path, device="vulkan")
    assert on_gpu.model(on_gpu.options, LARGE).name == X4PLUS


def test_the_threshold_is_the_environment_s(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTO_CPU_MEGAPIXELS", "0.7")
    assert chosen(tmp_path, "auto", LARGE) == X4PLUS
    assert chosen(tmp_path, "auto", LARGE, auto_cpu_megapixels=0.1) == GENERAL
    for wrong in ("-1", "nan", "much"):
        monkeypatch.setenv("AUTO_CPU_MEGAPIXELS", wrong)
        with pytest.raises(InvalidOption, match=f"AUTO_CPU_MEGAPIXELS is .*{wrong}.*; it must be"):
            selection.auto_cpu_megapixels()


def test_a_large_photo_takes_the_built_in_model_where_the_other_cannot_be_fetched(tmp_path, rng, monkeypatch):
    tries = []
    ensure = download.ensure

    def fetch(model, *arguments):
        tries.append(model.name)
        return ensure(model, *arguments)

    monkeypatch.setattr(download, "ensure", fetch)
    monkeypatch.setattr(download, "addresses", lambda model: iter(()))
    run = restorer.Restorer(weights=tmp_path, device="cpu:torch", face_enhance="off", auto_cpu_megapixels=0)
    photo = png(photo_like(rng, 20, 20))
    first, second = run.restore(photo), run.restore(photo)
    assert tries == [GENERAL, LITE], "fetching is tried once"
    assert (first.model, first.source, second.model) == (LITE, "built in", LITE)
    plan = run.plan(run.decode(photo))
    assert (plan.model.name, plan.reason) == (LITE, "large photo on a CPU: fast model")
    with pytest.raises(restorer.WeightsUnavailable):  # asked for by name
        run.restore(photo, model=GENERAL)


def test_a_plan_gives_a_reason_only_where_there_is_one(tmp_path, rng, no_package):
    run = restorer.Restorer(weights=tmp_path, device="cpu:torch", auto_cpu_megapixels=0)
    photo = run.decode(png(photo_like(rng, 20, 20)))
    assert run.plan(photo, model="fast").reason == ""
    put(tmp_path, GENERAL)
    assert run.plan(photo).model.name == GENERAL
    assert run.plan(photo).reason == "", "it is the best that is present"


@pytest.mark.parametrize("name", ["a_swinir", "half_copied", "once", GENERAL])
def test_auto_never_takes_a_custom_file(name, tmp_path, no_package):
    path = tmp_path / f"custom/{name}.safetensors"
    save_network(path, seed=1, scale=1 if name == "once" else 4)
    if name == "half_copied":
        path.write_bytes(path.read_bytes()[:1000])
    for model in ("auto", "fast"):
        for pixels in (0, LARGE):
            assert not chosen(tmp_path, model, pixels).startswith("custom/")


def test_a_half_copied_official_file_is_not_present(tmp_path, no_package):
    put(tmp_path, X4PLUS)
    assert chosen(tmp_path, "auto") == X4PLUS
    with (tmp_path / f"{X4PLUS}.pth").open("r+b") as file:
        file.truncate(1000)
    assert chosen(tmp_path, "auto") == LITE


def test_names_and_options():
    assert Options().model == "auto"
    assert [Options(face_enhance=given).face_enhance for given in (True, False, "auto")] == [
        "on",
        "off",
        "auto",
    ]


def test_offline_nothing_is_to_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert chosen(tmp_path, "auto", LARGE) == LITE
