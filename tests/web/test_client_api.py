"""gradio_client with a real server."""

import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, exceptions, handle_file
from gradio_client.utils import Status
from PIL import Image

from restorer import Options, Restorer
from restorer.models import registry
from tests.conftest import photo_like, png, save_network, save_quick_and_slow, wait_until
from tests.serving import HELD, held, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    save_quick_and_slow(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, HELD, MAX_FILE_SIZE_MB="1") as address:
        yield address


@pytest.fixture
def client(address, tmp_path):
    return Client(address, verbose=False, download_files=str(tmp_path / "downloads"))


@pytest.fixture
def photo(tmp_path, rng):
    def save(name="old.png", height=30, width=40):
        (tmp_path / name).write_bytes(png(photo_like(rng, height, width)))
        return tmp_path / name

    return save


def test_enhance_returns_file_previews_and_receipt(client, folder, photo):
    path = photo()
    file, previews, receipt = client.predict(
        handle_file(path), face_enhance=False, format="webp", api_name="/enhance"
    )
    restorer = Restorer(weights=folder / "weights", model="custom/quick", device="cpu:torch")
    expected = restorer.restore(path.read_bytes(), face_enhance="off", format="webp")
    with open(file, "rb") as received:
        assert received.read() == expected.data
    assert file.endswith("old_4x.webp")
    assert [Image.open(preview).size for preview in previews] == [(160, 120)] * 2
    assert {key: receipt[key] for key in expected.receipt} == expected.receipt
    assert (receipt["width"], receipt["height"]) == (160, 120)


def test_the_endpoints_have_the_defaults_of_the_page(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert not api["unnamed_endpoints"]
    assert set(api["named_endpoints"]) == {"/enhance", "/enhance_batch", "/models", "/quote", "/look"}
    for name in ("/enhance", "/enhance_batch"):
        first, *options = api["named_endpoints"][name]["parameters"]
        assert not first["parameter_has_default"]
        defaults = {option["parameter_name"]: option["parameter_default"] for option in options}
        assert defaults.pop("long_side") == 0
        assert defaults.pop("model") == "custom/quick", "as set for the server"
        assert defaults.pop("mask", None) is None
        assert defaults == {option: getattr(Options(), option) for option in defaults}
        assert all(option["type"] for option in options)


def test_mask_is_filled_and_comes_back(client, photo, tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[5:9, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    plain, _, _ = client.predict(handle_file(photo()), face_enhance=False, api_name="/enhance")
    file, _, receipt = client.predict(
        handle_file(photo()), face_enhance=False, mask=handle_file(tmp_path / "mask.png"), api_name="/enhance"
    )
    assert receipt["repair"]["mask"] == "own"
    np.testing.assert_array_equal(np.asarray(Image.open(receipt["mask"])), mask > 0)
    assert Path(file).read_bytes() != Path(plain).read_bytes()
    _, _, receipt = client.predict(
        handle_file(photo()), face_enhance=False, repair="on", repair_sensitivity=1, api_name="/enhance"
    )
    assert receipt["repair"]["sensitivity"] == 1
    Image.fromarray(mask[:9]).save(tmp_path / "mask.png")
    with pytest.raises(exceptions.AppError, match="the mask has 40 x 9 pixels"):
        client.predict(handle_file(photo()), mask=handle_file(tmp_path / "mask.png"), api_name="/enhance")


def test_batch_continues_after_a_bad_file(client, photo, tmp_path):
    (tmp_path / "bad.jpg").write_text("no photo")
    paths = [photo("a.png", 20, 20), tmp_path / "bad.jpg", photo("b.png", 30, 30)]
    photos = [handle_file(path) for path in paths]
    files, receipts = client.predict(photos, outscale=2, api_name="/enhance_batch")
    assert [Image.open(file).size for file in files] == [(40, 40), (60, 60)]
    assert [receipt.get("width") for receipt in receipts] == [40, None, 60]
    assert "not an image" in receipts[1]["error"]


def test_models_quote_and_look(client, photo):
    models = {model["name"]: model for model in client.predict(api_name="/models")}
    assert models["custom/quick"]["present"] and models[registry.BUILT_IN]["present"]
    quote = client.predict(handle_file(photo()), long_side=80, api_name="/quote")
    assert (quote["width"], quote["height"], quote["model"]) == (80, 60, "custom/quick")
    assert quote["tiles"] == 1 and quote["seconds"] >= 0 and quote["cost"] is None
    look = client.predict(handle_file(photo()), api_name="/look")
    assert (look["width"], look["options"]["outscale"]) == (40, 4) and "Suggested: 4x" in look["line"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outscale": 9}, "from 1 to 8"),
        ({"model": "nope"}, "custom/quick"),
        ({"face_enhance": "perhaps"}, "auto, on, off"),
        ({"face_enhance": True}, "yunet"),
        ({"long_side": "wide"}, "whole number"),
        ({"format": "gif"}, "same, png"),
    ],
)
def test_errors_have_no_paths_of_the_server(client, folder, photo, options, message):
    with pytest.raises(exceptions.AppError) as error:
        client.predict(handle_file(photo()), api_name="/enhance", **options)
    assert message in str(error.value) and str(folder) not in str(error.value)


def test_only_uploads_are_read(client, folder, address, tmp_path):
    secret = folder / "secret.png"
    secret.write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    for path in (str(secret), "/etc/hostname", f"{address}/theme.css", "http://127.0.0.1/x.png"):
        for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
            for url in ({"url": path}, {}):
                body = {"photo": {"path": path, **url, **meta}}
                event = httpx.post(f"{address}/gradio_api/call/v2/enhance", json=body)
                if event.status_code == 200:
                    events = httpx.get(
                        f"{address}/gradio_api/call/enhance/{event.json()['event_id']}", timeout=120
                    ).text
                    assert "event: complete" not in events, (path, meta, url)
    for path in ("file=http://127.0.0.1/", f"file={secret}", "file=/etc/passwd", "proxy=http://x/"):
        assert httpx.get(f"{address}/gradio_api/{path}").status_code in (403, 404)
    assert httpx.post(f"{address}/gradio_api/run/enhance", json={"data": []}).status_code == 404


def test_too_large_uploads_and_bodies_get_413(address):
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"x" * (2**20 + 1))})
    assert answer.status_code == 413
    answer = httpx.post(f"{address}/gradio_api/call/v2/enhance", content=b"x" * (22 * 2**20))
    assert (answer.status_code, "limit" in answer.json()) == (413, True)


def test_job_reports_rank_and_progress_and_can_be_cancelled(address, folder, photo):
    slow = {"model": "custom/slow", "face_enhance": False, "api_name": "/enhance"}
    path = photo("large.png", 600, 600)
    first, second = (Client(address, verbose=False) for _ in range(2))
    with held(folder):
        one = first.submit(handle_file(path), **slow)
        await_progress(one, r"restoring")
        two = second.submit(handle_file(path), **slow)
        wait_until(lambda: two.status().code is Status.IN_QUEUE and two.status().rank == 0)
        units = one.status().progress_data
        assert units and units[0].length and units[0].length > 1
        one.cancel()
        await_progress(two, r"restoring")
        two.cancel()
        wait_until(lambda: httpx.get(f"{address}/ready").json()["queue_length"] == 0)


def await_progress(job, pattern: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        units = job.status().progress_data
        if units and re.search(pattern, units[0].desc or ""):
            return
        time.sleep(0.05)
    raise AssertionError(f"no progress matched {pattern!r}: {job.status()}")


def test_only_clients_with_the_key_are_served(folder, tmp_path, photo):
    save_network(tmp_path / "weights/custom/quick.safetensors", seed=1)
    with served(tmp_path, API_KEY="open sesame", LOG_FORMAT="json") as address:
        with pytest.raises(Exception, match="credentials"):
            Client(address, verbose=False)
        client = Client(address, headers={"X-API-KEY": "open sesame"}, verbose=False)
        file, *_ = client.predict(handle_file(photo()), face_enhance=False, api_name="/enhance")
        assert Image.open(file).size == (160, 120)
        files = {"files": png(np.zeros((9, 9, 3), np.uint8))}
        answer = httpx.post(f"{address}/enhance", files=files, headers={"X-API-KEY": "open sesame"})
        assert answer.status_code == 202
    assert "sesame" not in (tmp_path / "log").read_text()
