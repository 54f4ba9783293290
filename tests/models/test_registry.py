"""The model table matches its source, and names resolve to models."""

import hashlib
import re
from pathlib import Path

import pytest

from restorer.errors import UnknownModel
from restorer.images import fading
from restorer.models import registry, sources
from restorer.models.registry import MODELS

BUILT_IN = next(model for model in MODELS if model.name == registry.BUILT_IN)
UPSCALERS = [model.name for model in MODELS if model.kind == "upscale"]


def facts_table(shared: Path) -> list[dict]:
    """Parse section 1 of facts.md: name, url, bytes, sha256 and, for upscalers, scale."""
    text = (shared / "docs" / "facts.md").read_text()
    roots = dict(re.findall(r"(\w\w) = (github\.com/\S+)", text))
    rows, scale = [], 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.fullmatch("[0-9a-f]{64}", cells[4]):
            continue
        name, network, address, size, sha256 = cells
        if match := re.search(r"scale (\d)", network):
            scale = int(match[1])
        elif network == "as x4plus":
            scale = rows[0]["scale"]
        if address.startswith("huggingface.co"):
            url = re.sub(r"^(\S+) (\S+), (\S+)$", r"https://\1/\2/resolve/<commit>/\3", address)
        else:
            root, path = address.split()
            url = f"https://{roots[root]}{path}"
        rows.append(
            {"name": name, "url": url, "bytes": int(size.replace(",", "")), "sha256": sha256, "scale": scale}
        )
    return rows


def test_table_matches_facts(shared):
    by_digest = {model.sha256: model for model in MODELS}
    rows = facts_table(shared)
    assert len(rows) == 14
    assert {row["sha256"] for row in rows} <= set(by_digest)
    for row in rows:
        model = by_digest[row["sha256"]]
        assert model.bytes == row["bytes"], model.name
        assert model.url.replace(model.revision or "<none>", "<commit>") == row["url"], model.name
        if model.kind == "upscale":
            assert (model.name, model.scale) == (row["name"], row["scale"])


def test_mirrors_match_facts(shared):
    text = (shared / "docs" / "facts.md").read_text()
    mirrored = dict(re.findall(r"([\w-]+/[\w-]+) \(([^)]+)\)", text[text.index("Hugging Face mirrors") :]))
    for model in MODELS:
        if model.mirror and not model.revision:
            assert any(model.name.endswith(short) for short in mirrored[model.mirror].split(", ")), model.name


def test_table_is_consistent():
    for model in MODELS:
        assert re.fullmatch("[0-9a-f]{64}", model.sha256), model.name
        built_in = model.name in (registry.BUILT_IN, "damage-detector", "damage-filler", fading.FILE.stem)
        assert built_in or model.url.startswith("https://") and model.url.endswith(model.file)
        assert built_in or model.file.endswith((".pth", ".onnx", ".pt")) and "/" not in model.file
        assert model.bytes > (30_000 if model.kind == "colour" else 100_000) and model.licence and model.about
        assert not model.revision or re.fullmatch("[0-9a-f]{40}", model.revision)
        assert model.scale in (1, 2, 4) if model.kind in ("upscale", "face") else model.scale == 0
        assert not model.denoise_model or model.denoise_model in UPSCALERS
    for field in ("name", "file", "sha256", "url"):
        values = [value for model in MODELS if (value := getattr(model, field))]
        assert len(set(values)) == len(values) >= len(MODELS) - 4, field
    kinds = {"upscale", "face", "detect", "parse", "damage", "fill", "colour"}
    assert {model.kind for model in MODELS} == kinds
    estimator = registry.find(fading.FILE.stem, Path(), "colour")
    assert (estimator.sha256, estimator.bytes) == (fading.SHA256, fading.FILE.stat().st_size)


def test_weights_folder_is_argument_then_environment_then_default(tmp_path, monkeypatch):
    monkeypatch.setenv("RESTORER_WEIGHTS", str(tmp_path))
    assert registry.weights_folder("else/where") == Path("else/where")
    assert registry.weights_folder() == tmp_path
    monkeypatch.setenv("RESTORER_WEIGHTS", "~/models")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.weights_folder() == tmp_path / "models"
    monkeypatch.delenv("RESTORER_WEIGHTS")
    assert registry.weights_folder() == Path(registry.__file__).parents[2] / "weights"


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))


def custom_files(weights: Path) -> dict[str, str]:
    return {
        model.name: model.file for model in registry.available(weights) if model.local and model not in MODELS
    }


def test_custom_models_are_the_weights_files_in_the_custom_folder(tmp_path):
    write_files(tmp_path, "custom/b.pth", "custom/4x Größe.v2.safetensors", "custom/LOUD.PTH")
    write_files(
        tmp_path, "custom/readme.txt", "custom/._b.pth", "custom/net.onnx", "custom/b.pth.part", "c.pth"
    )
    (tmp_path / "custom" / "folder.pth").mkdir()
    assert custom_files(tmp_path) == {
        "custom/b": "custom/b.pth",
        "custom/4x Größe.v2": "custom/4x Größe.v2.safetensors",
        "custom/LOUD": "custom/LOUD.PTH",
    }
    assert registry.available(tmp_path)[: len(MODELS)] == MODELS
    model = registry.find("custom/b", tmp_path)
    assert (model.kind, model.bytes, model.sha256) == ("upscale", len("custom/b.pth"), "")
    assert sources.is_present(model, tmp_path)


def test_missing_custom_folder_means_no_custom_models(tmp_path):
    assert registry.available(tmp_path / "absent") == MODELS


def test_safetensors_wins_over_pth_of_the_same_name(tmp_path):
    write_files(tmp_path, "custom/a.pth", "custom/a.safetensors")
    assert custom_files(tmp_path) == {"custom/a": "custom/a.safetensors"}


def test_custom_copy_of_the_general_model_has_its_custom_denoise_model(tmp_path):
    write_files(tmp_path, "custom/realesr-general-x4v3.pth")
    assert registry.find("custom/realesr-general-x4v3", tmp_path).denoise_model == ""
    write_files(tmp_path, "custom/realesr-general-wdn-x4v3.safetensors")
    name = registry.find("custom/realesr-general-x4v3", tmp_path).denoise_model
    assert registry.find(name, tmp_path).file == "custom/realesr-general-wdn-x4v3.safetensors"


@pytest.mark.parametrize("name", UPSCALERS)
def test_find_returns_the_model_of_exactly_that_name(name, tmp_path):
    write_files(tmp_path, f"custom/{name}.pth")
    assert registry.find(name, tmp_path) is next(model for model in MODELS if model.name == name)
    assert registry.find(f"custom/{name}", tmp_path).file == f"custom/{name}.pth"


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("RealESRGAN_x4plu", "RealESRGAN_x4plus"),
        ("realesrgan_X4PLUS", "RealESRGAN_x4plus"),
        ("realesr-general", "realesr-general-x4v3"),
        ("RealESRGAN_x4plus_anime", "RealESRGAN_x4plus_anime_6B"),
        ("4x-UltraSharp", "custom/4x-UltraSharp"),
    ],
)
def test_unknown_name_raises_with_the_closest_name(name, closest, tmp_path):
    write_files(tmp_path, "custom/4x-UltraSharp.pth")
    with pytest.raises(UnknownModel, match=rf"unknown model '{name}'; did you mean '{closest}'\?"):
        registry.find(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["", "zzz", "GFPGANv1.4", "yunet", "custom/../secret", "RealESRGAN_x4plus.pth "]
)
def test_name_that_is_not_an_upscaler_raises_with_the_choices(name, tmp_path):
    with pytest.raises(UnknownModel) as caught:
        registry.find(name, tmp_path)
    assert "auto, best, fast, " + ", ".join(UPSCALERS) in str(caught.value)


def test_former_name_finds_the_model_that_replaced_it(tmp_path):
    assert registry.find("restore-lite-x4", tmp_path) is BUILT_IN
    with pytest.raises(UnknownModel):
        registry.find("restore-lite-x4", tmp_path, "face")


def test_find_is_restricted_to_a_kind(tmp_path):
    assert registry.find("GFPGANv1.4", tmp_path, "face").bytes == 348_632_874
    with pytest.raises(UnknownModel):
        registry.find("GFPGANv1.4", tmp_path, "detect")


def test_built_in_model_ignores_the_weights_folder(tmp_path):
    file = Path(registry.__file__).parents[2] / f"weights/{registry.BUILT_IN}.safetensors"
    assert registry.path(BUILT_IN, tmp_path) == file and sources.is_present(BUILT_IN, tmp_path)
    body = file.read_bytes()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (BUILT_IN.bytes, BUILT_IN.sha256)
    assert len(body) <= 2_600_000
    other = registry.find("RealESRGAN_x4plus", tmp_path)
    assert registry.path(other, tmp_path) == tmp_path / "RealESRGAN_x4plus.pth"
