"""The first photo of a fresh installation, through every interface: x4plus from the package, a slow hub.

The hub is a server on this machine. It sends the face detector in pieces, so that progress is reported
while no total is known, and has nothing else.
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
from tests.web.test_page import browser, served, upload, watched  # noqa: F401  browser is a fixture

ROOT = Path(__file__).parents[2]
YUNET = next(model for model in registry.MODELS if model.name == "yunet")
BEST, LITE = "RealESRGAN_x4plus", "restore-lite-x4"


@pytest.fixture(scope="module")
def hub() -> Iterator[Server]:
    shared = Path(os.environ.get("RESTORER_SHARED", ROOT.parent / "shared"))
    file = shared / "weights" / YUNET.file
    # without the real one: what is downloaded in full and then refused takes the same way
    body = file.read_bytes() if file.is_file() else bytes(YUNET.bytes)
    with serving() as server:
        path = f"/{YUNET.mirror}/resolve/{YUNET.revision}/{YUNET.file}"
        server.answers[path] = whole(body, pieces=5, before_each=lambda _: time.sleep(0.2))
        yield server


@pytest.fixture
def environment(hub, monkeypatch) -> None:
    """Of a machine that reaches the hub and nothing else; a photo of 1,000 pixels is large."""
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
    """What the package itself makes of the small photo."""
    run = restorer.Restorer(weights=tmp_path_factory.mktemp("empty"), device="cpu:torch", face_enhance="off")
    result = run.restore(small, model="best")
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


def test_command_line(environment, hub, small, expected, tmp_path):
    photos = put_photos(tmp_path / "in", small)
    done = run(photos, "-o", tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert done.returncode == 0, done.stderr
    assert "2 restored, 0 skipped, 0 failed" in done.stdout
    assert f"160 x 160, {LITE}, " in done.stdout and f"120 x 96, {BEST}, " in done.stdout
    assert done.stderr.splitlines() == [
        f"using {LITE} (built in) on cpu:torch",
        f"using {BEST} (installed, fp16 copy) on cpu:torch",
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/small_4x.png")), expected)
    assert sum(YUNET.file in path for path, _ in hub.requests) == 1
    assert sum("realesr-general-x4v3" in path for path, _ in hub.requests) == 1, "fetching is tried once"


def test_batch(environment, small, expected, tmp_path):
    photos = put_photos(tmp_path / "in", small)
    done = run("batch", photos, tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert done.returncode == 0, done.stderr
    assert "2 restored, 0 done before, 0 failed" in done.stdout
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/small_4x.png")), expected)
    again = run("batch", photos, tmp_path / "out", "--weights-dir", tmp_path / "weights")
    assert "0 restored, 2 done before" in again.stdout


def test_python(environment, small, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", os.environ["HF_ENDPOINT"])
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        os.environ["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}",
    )
    run, steps, downloads = restorer.Restorer(weights=tmp_path, device="cpu:torch"), [], []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))
        if run.downloading:
            downloads.append(run.downloading)

    assert run.restore(small, progress=progress).model == BEST
    assert (0, 0) in steps and steps[-1][0] == steps[-1][1] == 1
    assert {(name, total) for name, _, total in downloads} >= {("yunet", YUNET.bytes)}
    assert run.downloading is None


def test_server(environment, small, expected, tmp_path, browser):  # noqa: F811
    put_photos(tmp_path / "photos", small)
    with served(tmp_path, MODEL="auto") as address:
        client = httpx.Client(base_url=address, timeout=60)
        told = {model["name"]: model for model in client.get("/models").json()}
        assert told[BEST]["source"] == "installed, fp16 copy"
        assert told[BEST]["sha256"] == sources.PACKAGED[BEST].sha256
        with watched(browser, address) as page:
            expect(page.get_by_label("Auto")).to_be_checked()
            upload(page, "small.png", small)
            expect(page.locator("#said")).to_contain_text(BEST)
            page.click("#start")
            expect(page.locator("#told")).to_contain_text(BEST, timeout=120_000)
        job = client.post("/enhance", files={"files": ("small.png", small)}).json()
        while (status := client.get(f"/status/{job['job_id']}").json())["status"] in ("queued", "processing"):
            time.sleep(0.1)
        (result,) = status["results"]
        assert (result["model"], result["source"]) == (BEST, "installed, fp16 copy")
        assert result["sha256"] == sources.PACKAGED[BEST].sha256
        data = client.get(result["url"]).content
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
        photo = handle_file(tmp_path / "photos/small.png")
        caller = Client(address, verbose=False, download_files=str(tmp_path / "got"))
        file, _, receipt = caller.predict(photo, api_name="/enhance")
        assert (receipt["model"], receipt["source"]) == (BEST, "installed, fp16 copy")
        assert np.array_equal(np.asarray(Image.open(file)), expected)
