"""The first photo after installation, through every interface: x4plus from its package, a slow hub.

The hub is a local server that has the face detector only. It sends the file in pieces, so that progress is
reported before the number of steps is known.
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import expect

import restorer
from restorer.models import registry, sources
from tests.conftest import photo_like, png
from tests.models.test_download import Server, serving, whole
from tests.serving import served
from tests.web.browsing import upload, watched

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
YUNET = next(model for model in registry.MODELS if model.name == "yunet")
BEST, LITE = "RealESRGAN_x4plus", registry.BUILT_IN


@pytest.fixture(scope="module")
def hub() -> Iterator[Server]:
    shared = Path(os.environ.get("RESTORER_SHARED", ROOT.parent / "shared"))
    file = shared / "weights" / YUNET.file
    # without the real file, the download completes and its checksum is then refused
    body = file.read_bytes() if file.is_file() else bytes(YUNET.bytes)
    with serving() as server:
        path = f"/{YUNET.mirror}/resolve/{YUNET.revision}/{YUNET.file}"
        server.answers[path] = whole(body, pieces=5, before_each=lambda _: time.sleep(0.2))
        yield server


@pytest.fixture
def environment(hub, monkeypatch) -> None:
    """Only the hub is reachable; photos above 1,000 pixels count as large."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AUTO_CPU_MEGAPIXELS", "0.001")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    hub.requests.clear()


@pytest.fixture(scope="module")
def small() -> bytes:
    return png(photo_like(np.random.default_rng(1), 24, 30))


@pytest.fixture(scope="module")
def expected(small, tmp_path_factory) -> np.ndarray:
    """The small photo restored with the weights of the package."""
    weights = tmp_path_factory.mktemp("empty")
    instance = restorer.Restorer(weights=weights, device="cpu:torch", face_enhance="off")
    result = instance.restore(small, model="best")
    assert (result.model, result.source) == (BEST, "installed, fp16 copy")
    assert result.receipt["sha256"] == result.sha256 == sources.PACKAGED[BEST].sha256
    return result.after.pixels


def run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "restorer", *map(str, words), "--device", "cpu:torch"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def put_photos(folder: Path, small: bytes) -> Path:
    folder.mkdir()
    (folder / "small.png").write_bytes(small)
    (folder / "large.png").write_bytes(png(photo_like(np.random.default_rng(2), 40, 40)))
    return folder


def test_command_line_restores_first_photos(environment, hub, small, expected, tmp_path):
    photos = put_photos(tmp_path / "in", small)
    process = run(photos, "-o", tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert process.returncode == 0, process.stderr
    assert "2 restored, 0 skipped, 0 failed" in process.stdout
    assert f"160 x 160, {LITE}, " in process.stdout and f"120 x 96, {BEST}, " in process.stdout
    assert process.stderr.splitlines() == [
        f"using {LITE} (built in) on cpu:torch",
        f"using {BEST} (installed, fp16 copy) on cpu:torch",
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/small_4x.png")), expected)
    assert sum(YUNET.file in path for path, _ in hub.requests) == 1
    assert sum("realesr-general-x4v3" in path for path, _ in hub.requests) == 1, "tried twice"


def test_batch_restores_first_photos(environment, small, expected, tmp_path):
    photos = put_photos(tmp_path / "in", small)
    process = run("batch", photos, tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert process.returncode == 0, process.stderr
    assert "2 restored, 0 done before, 0 failed" in process.stdout
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/small_4x.png")), expected)
    repeated = run("batch", photos, tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert "0 restored, 2 done before" in repeated.stdout


def test_python_reports_downloads(environment, small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", os.environ["HF_ENDPOINT"])
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        os.environ["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}",
    )
    instance, steps, downloads = restorer.Restorer(weights=tmp_path, device="cpu:torch"), [], []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        if instance.downloading:
            downloads.append(instance.downloading)

    assert instance.restore(small, progress=progress).model == BEST
    assert (0, 0) in steps and steps[-1][0] == steps[-1][1] == 72, "one tile of each segment"
    assert {(name, total) for name, _, total in downloads} >= {("yunet", YUNET.bytes)}
    assert instance.downloading is None


@pytest.mark.long
def test_server_restores_first_photo(environment, small, expected, tmp_path, browser):
    put_photos(tmp_path / "photos", small)
    with served(tmp_path, preloaded=False, MODEL="auto") as address:
        client = httpx.Client(base_url=address, timeout=60)
        models = {model["name"]: model for model in client.get("/models").json()}
        assert models[BEST]["source"] == "installed, fp16 copy"
        assert models[BEST]["sha256"] == sources.PACKAGED[BEST].sha256
        with watched(browser, address) as page:
            expect(page.get_by_label("Auto")).to_be_checked()
            upload(page, "small.png", small)
            expect(page.locator("#summary")).to_contain_text("best quality")
            page.click("#start")
            expect(page.locator("#result-text")).to_contain_text(BEST, timeout=120_000)
        job = client.post("/enhance", files={"files": ("small.png", small)}).json()
        while (status := client.get(f"/status/{job['job_id']}").json())["status"] in ("queued", "processing"):
            time.sleep(0.1)
        (result,) = status["results"]
        assert (result["model"], result["source"]) == (BEST, "installed, fp16 copy")
        assert result["sha256"] == sources.PACKAGED[BEST].sha256
        data = client.get(result["url"]).content
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
        photo = handle_file(tmp_path / "photos/small.png")
        caller = Client(address, verbose=False, download_files=str(tmp_path / "downloads"))
        file, _, receipt = caller.predict(photo, api_name="/enhance")
        assert (receipt["model"], receipt["source"]) == (BEST, "installed, fp16 copy")
        assert np.array_equal(np.asarray(Image.open(file)), expected)
