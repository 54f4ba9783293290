"""The REST API: in this process with small networks, and in servers that are killed."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from restorer import Restorer, WeightsUnavailable
from restorer.web import cleanup, metrics, server
from restorer.web.jobs import Jobs
from restorer.web.rest import routes
from restorer.web.service import Service
from restorer.web.settings import Settings
from tests import pictures
from tests.conftest import files_below, photo_like, png, save_quick_and_slow, wait_until
from tests.serving import HELD, exit_code, held, launched, served

pytestmark = pytest.mark.slow


def settings_in(folder: Path, **changes) -> Settings:
    save_quick_and_slow(folder)
    return Settings(
        upload_folder=folder / "uploads",
        processed_folder=folder / "processed",
        restorer_weights=str(folder / "weights"),
        model="custom/quick",
        device="cpu:torch",
        **{"min_free_disk_mb": 0, **changes},
    )


@pytest.fixture(autouse=True)
def uploads_of_gradio(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))  # as app.py does


@pytest.fixture
def client(tmp_path):
    with opened(settings_in(tmp_path)) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(tmp_path_factory):
    """A client for tests that change nothing which another one reads."""
    with opened(settings_in(tmp_path_factory.mktemp("server"))) as client:
        yield client


def opened(settings: Settings, **options) -> TestClient:
    return TestClient(server.asgi(settings), base_url="http://127.0.0.1:7860", **options)


def posted(client, *files, **options) -> dict:
    answer = client.post("/enhance", files=[("files", file) for file in files], data=options)
    assert answer.status_code == 202, answer.text
    return answer.json()


def ended(client, job_id: str, seconds: float = 180) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = client.get(f"/status/{job_id}").json()
        if status["status"] not in ("queued", "processing"):
            return status
        time.sleep(0.02)
    raise AssertionError(f"not ended: {status}")


def test_job_with_one_broken_file_has_results_and_one_error(client, rng, monkeypatch):
    photos = {f"photo {n}.png": png(photo_like(rng, 20 + n, 30)) for n in range(4)}
    names = ["photo 0.png", "photo 1.png", "bröken.jpg", "photo 2.png", "photo 3.png"]
    answered, begin = threading.Event(), Jobs.begin
    monkeypatch.setattr(Jobs, "begin", lambda self, job: answered.wait(60) and begin(self, job))
    answer = posted(client, *((name, photos.get(name, b"no photo")) for name in names), outscale="2")
    assert set(answer) == {"job_id", "status", "queue_position"} and answer["status"] == "queued"
    answered.set()
    status = ended(client, answer["job_id"])
    assert status["status"] == "completed" and status["queue_position"] == 0
    assert status["progress"] == {"done": 5000, "total": 5000}
    (error,) = status["errors"]
    assert error["original_filename"] == "bröken.jpg" and "not an image" in error["error"]
    assert [result["original_filename"] for result in status["results"]] == sorted(photos)
    for index, result in enumerate(status["results"]):
        assert (result["width"], result["height"], result["model"]) == (60, 40 + 2 * index, "custom/quick")
        assert isinstance(result["warnings"], list) and isinstance(result["faces"], str)
        file = client.get(result["url"])
        assert Image.open(io.BytesIO(file.content)).size == (60, 40 + 2 * index)
        assert file.headers["content-type"] == "image/png"
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["content-disposition"].startswith("attachment")
        part = client.get(result["url"], headers={"Range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, b"PNG")


def test_result_equals_that_of_the_package(client, tmp_path, rng):
    photo = png(photo_like(rng, 24, 31))
    status = ended(client, posted(client, ("a.png", photo), face_enhance="false", format="webp")["job_id"])
    restorer = Restorer(weights=tmp_path / "weights", model="custom/quick", device="cpu:torch")
    assert client.get(status["results"][0]["url"]).content == (
        restorer.restore(photo, face_enhance="off", format="webp").data
    )


def test_every_option_is_passed_on(client, rng):
    file = ("a.png", png(photo_like(rng, 40, 50)))
    options = {
        "model": "custom/slow",
        "outscale": 3.0,
        "long_side": 0,
        "print_size": "",
        "dpi": 200,
        "strength": 0.5,
        "denoise": 1.0,
        "colour": "neutral",
        "colour_strength": 0.5,
        "autopilot": True,
        "tile": 32,
        "format": "jpeg",
        "quality": 60,
        "max_bytes": 10**6,
        "keep_metadata": False,
        "remove_gps": True,
        "face_enhance": "off",
        "face_model": "GFPGANv1.4",
        "face_detector": "retinaface",
        "face_strength": 0.5,
        "face_mask": "parsing",
        "face_large": True,
        "repair": "on",
        "repair_sensitivity": 0.25,
    }
    texts = {name: str(value) for name, value in options.items()}
    status = ended(client, posted(client, file, **texts)["job_id"])
    assert status["results"][0]["options"] == options
    status = ended(client, posted(client, file, long_side="100")["job_id"])
    assert (status["results"][0]["width"], status["results"][0]["height"]) == (100, 80)
    assert status["results"][0]["url"].endswith("/a_100px.png")
    status = ended(client, posted(client, file, print_size="2x2cm", dpi="150")["job_id"])
    assert (status["results"][0]["width"], status["results"][0]["height"]) == (118, 94)
    assert status["results"][0]["url"].endswith("/a_2x2cm.png")
    status = ended(client, posted(client, file, face_enhance="true")["job_id"])
    assert status["status"] == "failed" and "yunet" in status["errors"][0]["error"]
    status = ended(client, posted(client, file, face_enhance="auto")["job_id"])
    assert status["status"] == "completed" and "face detection skipped" in status["results"][0]["faces"]


def masks(rng) -> tuple[bytes, bytes]:
    """A photo and a mask of it."""
    mask = np.zeros((24, 31), np.uint8)
    mask[5:9, 10:30] = 255
    return png(photo_like(rng, 24, 31)), png(mask)


def test_mask_is_filled_and_can_be_fetched(client, rng):
    photo, mask = masks(rng)
    (plain,) = ended(client, posted(client, ("a.png", photo))["job_id"])["results"]
    assert plain["mask_url"] == "" and plain["repair"]["mask"] == "off"
    files = [("files", ("a.png", photo)), ("mask", ("any name", mask))]
    answer = client.post("/enhance", files=files)
    (result,) = ended(client, answer.json()["job_id"])["results"]
    assert result["repair"]["mask"] == "own" and result["repair"]["share"] == round(80 / (24 * 31), 6)
    assert client.get(result["url"]).content != client.get(plain["url"]).content
    answer = client.get(result["mask_url"])
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), mask_pixels(mask))
    job = posted(client, ("a.png", photo), repair="on", repair_sensitivity="1")
    (detected,) = ended(client, job["job_id"])["results"]
    assert detected["repair"]["mask"] == "on" and detected["repair"]["share"] > 0.5


def mask_pixels(mask: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(mask))) > 0


def test_mask_of_a_turned_photo_is_upright(client, rng):
    _, mask = masks(rng)
    turned = pictures.pillow(photo_like(rng, 31, 24), "JPEG", exif=b"Exif\0\0" + pictures.camera_exif("<", 6))
    answer = client.post("/enhance", files=[("files", ("a.jpg", turned)), ("mask", ("m.png", mask))])
    assert answer.status_code == 202, answer.text
    (result,) = ended(client, answer.json()["job_id"])["results"]
    assert result["repair"]["share"] == round(80 / (24 * 31), 6)


def test_masks_that_do_not_fit_are_refused(client, rng):
    photo, mask = masks(rng)
    for files, message in (
        ([("files", photo), ("files", photo), ("mask", mask)], "a mask is sent with 2 photos"),
        ([("files", photo), ("mask", b"no picture")], "the mask: "),
        ([("files", photo), ("mask", png(np.zeros((9, 31), np.uint8)))], "the mask has 31 x 9 pixels"),
        ([("files", photo), ("mask", mask), ("mask", mask)], "unknown file field 'mask'"),
        ([("mask", mask)], "no file"),
    ):
        answer = client.post("/enhance", files=[(field, ("a.png", data)) for field, data in files])
        assert answer.status_code == 422 and message in answer.json()["error"], answer.text
    answer = client.post("/quote", files=[("files", ("a.png", photo)), ("mask", ("m.png", mask))])
    assert answer.status_code == 422


def test_mask_is_part_of_what_an_idempotency_key_stands_for(client, rng):
    photo, mask = masks(rng)
    headers = {"Idempotency-Key": "masked"}
    files = [("files", ("a.png", photo)), ("mask", ("m.png", mask))]
    answers = [client.post("/enhance", files=files, headers=headers) for _ in range(2)]
    assert answers[0].json()["job_id"] == answers[1].json()["job_id"]
    other = png(np.zeros((24, 31), np.uint8))
    answer = client.post(
        "/enhance", files=[("files", ("a.png", photo)), ("mask", ("m.png", other))], headers=headers
    )
    assert answer.status_code == 422 and "other files or options" in answer.json()["error"]
    ended(client, answers[0].json()["job_id"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outscale": "9"}, "outscale is '9'; it must be less than or equal to 8"),
        ({"outscale": "nan"}, "less than or equal to 8"),
        ({"outscale": "large"}, "it must be a valid number"),
        ({"quality": "9.5"}, "it must be a valid integer"),
        ({"keep_metadata": "maybe"}, "keep_metadata is 'maybe'"),
        ({"face_enhance": "perhaps"}, "it must be 'auto', 'on' or 'off'"),
        ({"repair": "yes"}, "it must be 'off', 'auto' or 'on'"),
        ({"repair_sensitivity": "1.5"}, "less than or equal to 1"),
        ({"format": "gif"}, "it must be 'same', 'png', 'jpeg', 'webp', 'tiff', 'avif' or 'jxl'"),
        ({"model": "nope"}, "custom/quick"),
        ({"denoise": "0.5"}, "does not support denoise 0.5; use 1"),
        ({"sharpen": "1"}, "'sharpen'"),
        ({"long_side": "7"}, "from 20 to 160"),
        ({"long_side": "-4"}, "greater than or equal to 0"),
        ({"long_side": "9" * 400}, "less than or equal to 100000"),
        ({"tile": "4096"}, "less than or equal to 1024"),
        ({"tile": "7"}, "from 32 to 4096"),
    ],
)
def test_invalid_option_gets_422_with_allowed_values(open_client, rng, options, message):
    photo = png(photo_like(rng, 20, 20))
    answer = open_client.post("/enhance", files={"files": ("a.png", photo)}, data=options)
    assert answer.status_code == 422, answer.text
    assert message in json.dumps(answer.json(), ensure_ascii=False)
    assert open_client.get("/metrics").text.count('restorer_jobs{state="queued"} 0.0') == 1


def test_limits_are_checked_before_the_job_is_accepted(tmp_path, rng):
    settings = settings_in(
        tmp_path,
        max_file_size_mb=1,
        max_files_per_job=2,
        max_input_megapixels=0.01,
        max_output_megapixels=0.05,
    )
    small, large = png(photo_like(rng, 20, 20)), png(rng.integers(0, 256, (120, 120, 3), np.uint8))
    with opened(settings) as client:

        def assert_refused(code: int, limit: float, *files, **options) -> None:
            answer = client.post("/enhance", files=[("files", file) for file in files], data=options)
            assert (answer.status_code, answer.json()["limit"]) == (code, limit), answer.text

        assert_refused(413, 2**20, ("a.png", small), ("b.png", b"x" * (2**20 + 1)))
        multipart = {"content-type": "multipart/form-data; boundary=x"}
        utf7_name = b"--x\r\nContent-Disposition: form-data; name=files; filename=a+2AA-.png\r\n\r\n"
        utf7 = {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}
        accepted = client.post("/enhance", content=utf7_name + small + b"\r\n--x--\r\n", headers=utf7)
        assert accepted.status_code == 202 and client.get(accepted.headers["location"]).status_code == 200
        ended(client, accepted.json()["job_id"])
        assert client.delete(f"/jobs/{accepted.json()['job_id']}").status_code == 200
        assert_refused(413, 2 * 2**20 + 65536, ("a.png", b"x" * (3 * 2**20)))
        assert_refused(422, 2, *[("a.png", small)] * 3)
        assert_refused(422, 10_000, ("a.png", large))
        assert_refused(422, 50_000, ("a.png", png(photo_like(rng, 60, 60))), outscale="4")
        assert client.post("/enhance").status_code == 422
        assert client.post("/enhance", files={"other": ("a.png", small)}).json()["allowed"] == ["files"]

        def chunks():
            yield b"--x\r\nContent-Disposition: form-data; name=files; filename=a\r\n\r\n"
            for _ in range(64):
                yield b"x" * 2**20

        assert client.post("/enhance", content=chunks(), headers=multipart).status_code == 413
        assert [path.name for path in settings.jobs_folder.iterdir()] == [".lock"]
    with opened(settings.model_copy(update={"min_free_disk_mb": 10_000_000})) as client:
        for code, answer in (
            (507, client.post("/enhance", files={"files": ("a.png", small)})),
            (503, client.get("/ready")),
        ):
            assert (answer.status_code, answer.json()["limit"]) == (code, 10_000_000)
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200


def wait_after_slow_tiles(monkeypatch, wait) -> None:
    real_restore = Restorer.restore

    def restore(self, data, *, progress=None, **options):
        def waiting(done, total):
            progress(done, total)
            if done:
                wait()

        slow = options["model"] == "custom/slow"
        return real_restore(self, data, progress=waiting if slow else progress, **options)

    monkeypatch.setattr(Restorer, "restore", restore)


def test_queue_is_limited_and_jobs_run_in_order(tmp_path, rng, monkeypatch):
    cancelled = threading.Event()
    wait_after_slow_tiles(monkeypatch, lambda: cancelled.wait(600))
    settings = settings_in(tmp_path, max_queue=2, max_output_megapixels=100)
    slow, quick = png(photo_like(rng, 300, 300)), png(photo_like(rng, 20, 20))
    with opened(settings) as client:
        jobs = [posted(client, ("a.png", slow), model="custom/slow", tile="32")]
        jobs += [posted(client, ("b.png", quick)) for _ in range(2)]
        assert [job["queue_position"] for job in jobs] == [0, 1, 2]
        full = client.post("/enhance", files={"files": ("c.png", quick)})
        assert (full.status_code, full.json()["limit"]) == (503, 2) and full.headers["retry-after"]
        assert client.delete(f"/jobs/{jobs[1]['job_id']}").json()["status"] == "cancelled"
        third = client.get(f"/status/{jobs[2]['job_id']}").json()
        assert (third["status"], third["queue_position"]) == ("queued", 1)
        assert ended(client, jobs[1]["job_id"])["status"] == "cancelled"
        while not client.get(f"/status/{jobs[0]['job_id']}").json()["progress"]["done"]:
            time.sleep(0.05)
        assert client.delete(f"/jobs/{jobs[0]['job_id']}").json()["status"] == "cancelled"
        cancelled.set()
        assert ended(client, jobs[2]["job_id"])["status"] == "completed"
        for job in jobs:
            assert client.delete(f"/jobs/{job['job_id']}").json()["status"] == "deleted"
            assert client.get(f"/status/{job['job_id']}").status_code == 404
            assert client.delete(f"/jobs/{job['job_id']}").status_code == 404
        assert [path.name for path in settings.jobs_folder.iterdir()] == [".lock"]


def test_events_stream_until_the_job_ends(client, rng, monkeypatch):
    monkeypatch.setattr(routes, "_EVENT_SECONDS", 0.05)
    wait_after_slow_tiles(monkeypatch, lambda: time.sleep(0.05))
    photo = png(photo_like(rng, 100, 100))
    job = posted(client, ("a.png", photo), ("b.png", photo), model="custom/slow", tile="32")
    statuses = []
    with client.stream("GET", f"/status/{job['job_id']}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                statuses.append(json.loads(line.removeprefix("data: ")))
    done = [status["progress"]["done"] for status in statuses]
    assert done == sorted(done) and done[-1] == 2000 and len(set(done)) > 4
    assert statuses[-1]["status"] == "completed" and statuses[-1]["results"]


def test_ranges_are_served_ignored_or_refused(open_client, rng):
    job = posted(open_client, ("a.png", png(photo_like(rng, 20, 20))))["job_id"]
    (result,) = ended(open_client, job)["results"]
    whole = open_client.get(result["url"]).content
    expected = {
        "bytes=2-5": whole[2:6],
        "bytes=9-": whole[9:],
        "bytes=-4": whole[-4:],
        "bytes=0-9999999": whole,
    }
    for text, part in expected.items():
        answer = open_client.get(result["url"], headers={"range": text})
        assert (answer.status_code, answer.content) == (206, part), text
    for text in (
        "bytes=abc",
        "bytes=10-5",
        "bytes=-",
        "bytes=",
        "lines=1-2",
        "bytes=1-2,x",
        "bytes=1-2-3",
        "bytes",
    ):
        answer = open_client.get(result["url"], headers={"range": text})
        assert (answer.status_code, answer.content) == (200, whole), text
    for text in (f"bytes={len(whole)}-", "bytes=-0", "bytes=0-1,999999999-"):
        answer = open_client.get(result["url"], headers={"range": text})
        assert answer.status_code == 416 and "begins after its end" in answer.json()["error"], text
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"


def test_only_results_are_served(client, tmp_path, rng):
    job = posted(client, ("a.png", png(photo_like(rng, 20, 20))))["job_id"]
    assert ended(client, job)["status"] == "completed"
    for path in (
        f"/processed/{job}/0/other.png",
        f"/processed/{job}/1/a_4x.png",
        f"/processed/{job}/-1/a_4x.png",
        f"/processed/{job}/{'9' * 5000}/a_4x.png",
        f"/processed/{job}/0/..%2F..%2Fjob.json",
        f"/processed/{'0' * 32}/0/a_4x.png",
        f"/processed/../uploads/jobs/{job}/job.json",
        "/processed/",
        f"/gradio_api/file={tmp_path}/uploads/jobs/{job}/job.json",
        f"/gradio_api/file={tmp_path}/uploads/jobs/{job}/0",
    ):
        assert client.get(path).status_code in (403, 404, 422), path


def test_server_is_built_without_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        server.asgi(settings_in(tmp_path))


def test_models_quote_health_ready_metrics_and_openapi(client, rng):
    by_name = {model["name"]: model for model in client.get("/models").json()}
    assert by_name["custom/quick"]["present"] and not by_name["GFPGANv1.3"]["present"]
    quote = client.post("/quote", files={"files": ("a.png", png(photo_like(rng, 40, 30)))}).json()
    assert (quote["width"], quote["height"], quote["model"], quote["tiles"]) == (120, 160, "custom/quick", 1)
    assert quote["seconds"] >= 0
    broken = client.post("/quote", files={"files": ("a.png", b"no")})
    assert broken.status_code == 422 and "not an image" in broken.json()["error"]
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 200
    assert client.head(f"/status/{'0' * 32}/events").status_code == 405, "a stream would be sent to its end"
    assert client.get("/ready").json()["model"] == "custom/quick"
    assert ended(client, posted(client, ("secret name.png", png(photo_like(rng, 20, 20))))["job_id"])
    text = client.get("/metrics").text
    assert 'restorer_photos_total{state="completed"} 1.0' in text
    assert 'restorer_jobs{state="completed"} 1.0' in text
    assert "restorer_disk_free_bytes" in text and "secret" not in text
    openapi = client.get("/openapi.json").json()
    assert {"/enhance", "/status/{job_id}", "/quote", "/models"} <= set(openapi["paths"])
    page = client.get("/docs").text
    assert "http://" not in page and "https://" not in page, "nothing is loaded from other hosts"
    assert client.get("/docs/static/swagger-ui-bundle.js").status_code == 200


def test_look_says_what_is_wrong_with_a_photo(client, rng):
    faded = png(photo_like(rng, 60, 80) // 3 + 90)
    files = {"files": ("a.png", faded)}
    look = client.post("/look", files=files).json()
    expected = Restorer(weights="none").look(faded).as_dict()
    assert look == json.loads(json.dumps(expected)) and look["options"]["colour"] == "auto"
    refused = client.post("/look", files=files, data={"outscale": "2"})
    assert refused.status_code == 422 and "unknown option 'outscale'" in refused.json()["error"]
    broken = client.post("/look", files={"files": ("a.png", b"no")})
    assert broken.status_code == 422 and broken.json()["original_filename"] == "a.png"


def test_look_does_not_depend_on_the_limit_of_results(tmp_path, rng):
    files = {"files": ("a.png", png(photo_like(rng, 60, 80)))}
    with opened(settings_in(tmp_path, max_output_megapixels=0.01)) as client:
        assert client.post("/quote", files=files).status_code == 422
        assert client.post("/look", files=files).status_code == 200


def test_each_photo_is_logged_without_its_name(tmp_path, rng, caplog):
    with opened(settings_in(tmp_path)) as client, caplog.at_level("INFO", "restorer"):
        files = [("my wedding.png", png(photo_like(rng, 20, 30))), ("broken wedding.png", b"no")]
        job = posted(client, *files)["job_id"]
        ended(client, job)
    records = [record for record in caplog.records if record.name.endswith("metrics")]
    lines = [json.loads(metrics.JsonFormatter().format(record)) for record in records]
    assert " state=completed" in records[0].getMessage() and " state=failed" in records[1].getMessage()
    assert [line["state"] for line in lines] == ["completed", "failed"]
    assert (lines[0]["pixels_in"], lines[0]["pixels_out"]) == (600, 9600)
    assert lines[0]["model"] == "custom/quick" and lines[0]["seconds"] >= 0
    assert [line["id"] for line in lines] == [f"{job[:12]}/0", f"{job[:12]}/1"], "only part of the id"
    assert "wedding" not in caplog.text


def test_page_and_rest_share_one_queue(tmp_path, rng, monkeypatch):
    running, most = 0, 0
    lock, real_restore = threading.Lock(), Restorer.restore

    def counted(self, *args, **options):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            time.sleep(0.02)
            return real_restore(self, *args, **options)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(Restorer, "restore", counted)
    photo = png(photo_like(rng, 20, 20))
    with opened(settings_in(tmp_path)) as client, ThreadPoolExecutor(8) as pool:

        def by_rest(_):
            return ended(client, posted(client, ("a.png", photo))["job_id"])["status"] == "completed"

        def by_gradio(_):
            (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", photo)}).json()
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            call = client.post("/gradio_api/call/v2/enhance", json={"photo": file, "face_enhance": False})
            event = call.json()["event_id"]
            return "event: complete" in client.get(f"/gradio_api/call/enhance/{event}").text

        futures = [pool.submit(submit, n) for n in range(5) for submit in (by_rest, by_gradio)]
        assert all(future.result(timeout=600) for future in futures)
    assert most == 1


def test_one_photo_a_job_may_have_a_mask_as_large_as_the_photo(tmp_path, rng):
    """Noise, which PNG stores in as many bytes as it has samples."""
    photo, mask = (png(rng.integers(0, 256, (550, 550, 3), np.uint8)) for _ in range(2))
    assert len(photo) > 900_000
    settings = settings_in(tmp_path, max_files_per_job=1, max_file_size_mb=1)
    with opened(settings) as client:
        files = [("files", ("a.png", photo)), ("mask", ("mask.png", mask))]
        answer = client.post("/quote", files=files[:1])
        assert answer.status_code == 200, answer.text
        assert client.post("/enhance", files=files).status_code == 202


def check_resumed(tmp_path: Path, end) -> None:
    """Interrupt a server with `end` while two jobs are unfinished; the next process finishes them."""
    settings_in(tmp_path)
    rng = np.random.default_rng(5)
    photos = [("small.png", png(photo_like(rng, 20, 20))), ("large.png", png(photo_like(rng, 300, 300)))]
    with held(tmp_path), launched(tmp_path, HELD, MODEL="custom/slow") as (process, address):
        client = httpx.Client(base_url=address, timeout=60)
        first = posted(client, *photos, tile="64")
        second = posted(client, photos[0])
        while len(httpx.get(f"{address}/status/{first['job_id']}").json()["results"]) < 1:
            time.sleep(0.05)
        end(process, address)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("uploads/jobs/*/job.json")]
    assert {record["state"] for record in records} <= {"queued", "processing"} and len(records) == 2
    with served(tmp_path, MODEL="custom/slow") as address:
        for job, count in ((first, 2), (second, 1)):
            status = ended(httpx.Client(base_url=address), job["job_id"], seconds=300)
            assert (status["status"], len(status["results"]), status["errors"]) == ("completed", count, [])
            for result in status["results"]:
                file = httpx.get(result["url"]).content
                Image.open(io.BytesIO(file)).verify()


def test_accepted_jobs_survive_a_kill(tmp_path):
    def kill(process: BaseProcess, _address: str) -> None:
        process.kill()
        assert exit_code(process) == -signal.SIGKILL

    check_resumed(tmp_path, kill)


def test_clean_shutdown_requeues_jobs(tmp_path):
    def end(process: BaseProcess, _address: str) -> None:
        process.terminate()
        assert exit_code(process) == 0

    check_resumed(tmp_path, end)
    assert not list((tmp_path / "uploads/jobs").glob("*.part"))


def test_an_asgi_host_that_shuts_down_keeps_jobs_and_uploads(tmp_path, rng, monkeypatch):
    started = threading.Event()

    def restore(self, *arguments, progress, **options):
        started.set()
        while True:
            progress(0, 1)
            time.sleep(0.01)

    monkeypatch.setattr(Restorer, "restore", restore)
    with opened(settings_in(tmp_path)) as client:
        photo = png(photo_like(rng, 20, 30))
        (upload,) = client.post("/gradio_api/upload", files={"files": ("a.png", photo)}).json()
        job = posted(client, ("a.png", photo))["job_id"]
        assert started.wait(60)
    record = json.loads((tmp_path / f"uploads/jobs/{job}/job.json").read_text())
    assert (record["state"], record["starts"]) == ("queued", 0)
    assert Path(upload).read_bytes() == photo


def test_a_server_that_hangs_requeues_its_jobs_once(tmp_path, monkeypatch):
    hung, requeue = server.Server(settings_in(tmp_path)), mock.Mock()
    hung.worker.closed = True  # as the watchdog does
    monkeypatch.setattr(hung.jobs, "requeue", requeue)
    monkeypatch.setattr(hung.blocks, "close", mock.Mock())
    monkeypatch.setattr(server.logging, "shutdown", mock.Mock())
    hung.close()
    hung.close()
    requeue.assert_called_once_with()


def test_shutdown_does_not_wait_for_a_long_tile(tmp_path):
    settings_in(tmp_path)
    photo = png(photo_like(np.random.default_rng(5), 20, 20))
    with launched(tmp_path, HELD, ENDLESS="1") as (process, address):
        client = httpx.Client(base_url=address, timeout=60)
        job = posted(client, ("endless.png", photo), model="custom/slow")
        with client.stream("GET", f"/status/{job['job_id']}/events") as events:
            while client.get(f"/status/{job['job_id']}").json()["status"] != "processing":
                time.sleep(0.05)
            process.terminate()
            time.sleep(0.3)
            process.terminate()  # a second signal changes nothing
            assert exit_code(process) == 0
            events.close()
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("uploads/jobs/*/job.json"))
    assert (record["state"], record["starts"]) == ("queued", 0)


def test_second_server_for_a_folder_raises_os_error(client, tmp_path):
    with pytest.raises(OSError, match="used by another server"):
        server.asgi(settings_in(tmp_path))


def test_everything_expires_and_is_deleted(tmp_path, rng, monkeypatch):
    """Files of page, gradio_client and REST, a cancelled job included, on a clock that is then advanced."""
    hours = 0
    clock = SimpleNamespace(time=lambda: time.time() + 3600 * hours)
    monkeypatch.setattr(cleanup, "time", clock)
    shutil.rmtree(tmp_path / "uploads", ignore_errors=True)
    settings = settings_in(tmp_path, retention_seconds=3600, cleanup_interval=0.2)
    photo, slow = png(photo_like(rng, 20, 20)), png(photo_like(rng, 200, 200))
    with opened(settings) as client:
        jobs = [posted(client, ("a.png", photo))["job_id"] for _ in range(3)]
        cancelled = posted(client, ("b.png", slow), model="custom/slow", tile="32")["job_id"]
        (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", photo)}).json()
        client.post("/gradio_api/upload", files={"files": ("unused.png", slow)})
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = client.post("/gradio_api/call/v2/enhance", json={"photo": file}).json()["event_id"]
        client.delete(f"/jobs/{cancelled}")
        assert "event: complete" in client.get(f"/gradio_api/call/enhance/{event}").text
        assert all(ended(client, job)["status"] == "completed" for job in jobs)
        hours = 2
        wait_until(lambda: not left(settings))
        wait_until(lambda: client.get(f"/status/{jobs[0]}").status_code == 404)


def left(settings: Settings) -> list[Path]:
    roots = (settings.upload_folder, settings.processed_folder)
    return [path for path in files_below(*roots) if path.name != ".lock"]


def test_concurrent_jobs_get_the_results_of_their_own_photo(client, rng):
    photos = [photo_like(rng, 10 + n, 40 - n) for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        jobs = list(pool.map(lambda p: posted(client, ("a.png", png(p)), outscale="1"), photos))
    hashes = set()
    for photo, job in zip(photos, jobs, strict=True):
        (result,) = ended(client, job["job_id"])["results"]
        file = client.get(result["url"]).content
        assert Image.open(io.BytesIO(file)).size == photo.shape[1::-1]
        hashes.add(hashlib.sha256(file).hexdigest())
    assert len(hashes) == len(photos)


def test_a_model_that_was_removed_is_not_ready(tmp_path):
    with opened(settings_in(tmp_path)) as client:
        assert client.get("/ready").status_code == 200
        (tmp_path / "weights/custom/quick.safetensors").unlink()
        answer = client.get("/ready")
        assert answer.status_code == 503 and "custom/quick" in answer.json()["error"]


def test_looks_of_many_clients_leave_threads_for_others(tmp_path, rng, monkeypatch):
    lock, counts, now = threading.Lock(), [], [0]

    def look(self, *_):
        with lock:
            now[0] += 1
            counts.append(now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return {"width": 8, "height": 8, "findings": [], "options": {}, "line": "8 × 8"}

    monkeypatch.setattr(Service, "look", look)
    photo = png(photo_like(rng, 8, 8))
    with opened(settings_in(tmp_path)) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/look", files={"files": ("a.png", photo)}), range(8)))
    assert {answer.status_code for answer in answers} == {200} and max(counts) <= 2


@pytest.mark.parametrize("name", ["upload_folder", "processed_folder"])
def test_unwritable_folder_is_refused_at_start_and_by_ready(tmp_path, name):
    blocked, settings = tmp_path / "file", settings_in(tmp_path)
    blocked.write_text("")
    for folder in (blocked, blocked / "below", unwritable(tmp_path)):
        with pytest.raises(OSError, match=f"cannot write to {name.upper()}, {folder}"):
            server.asgi(settings.model_copy(update={name: folder}))
    with opened(settings) as client:
        before = files_below(settings.upload_folder, settings.processed_folder)
        assert client.get("/ready").status_code == 200
        assert files_below(settings.upload_folder, settings.processed_folder) == before
        folder = settings.jobs_folder if name == "upload_folder" else settings.processed_folder
        folder.rename(tmp_path / "moved")
        folder.write_text("")
        answer = client.get("/ready")
        assert answer.status_code == 503 and "cannot be written" in answer.json()["error"]
        assert str(tmp_path) not in answer.text
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        assert client.get("/ready").status_code == 200


def unwritable(folder: Path) -> Path:
    """A folder that exists and in which nobody, not even root, can create a file."""
    if os.geteuid() == 0:
        return Path("/proc/sys")
    (folder / "unwritable").mkdir(mode=0o555, exist_ok=True)
    return folder / "unwritable"


def part(disposition: str, data: bytes, boundary: str = "x") -> bytes:
    return f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        # .NET's MultipartFormDataContent sends both, unquoted and as an encoded word
        (
            "form-data; name=files; filename=\"=?utf-8?B?YsO8LnBuZw==?=\"; filename*=utf-8''b%C3%BC.png",
            "bü.png",
        ),
        ('form-data; name="files"; filename="=?utf-8?B?YsO8?= =?utf-8?B?LnBuZw==?="', "bü.png"),
        ('form-data; name="files"; filename="=?iso-8859-1?Q?b=FC_x.png?="', "bü x.png"),
        ('form-data; name="files"; filename="=?utf-8?B?Li4vLi4vYS5wbmc=?="', "a.png"),
        ('form-data; name="files"; filename="=?nope?Q?a?="', "=?nope?Q?a?="),
        ('form-data; name="files"; filename="=?utf-8?Q?=FF?="', "=?utf-8?Q?=FF?="),
        ('form-data; name="files"; filename="=?é?q?a?="', "=?é?q?a?="),
        ('form-data; name="files"; filename="=?utf-8?B?!!!?="', "photo"),
        ("form-data; name=\"files\"; filename*=UTF-8''b%C3%BC%22%5C.png", "bü__.png"),
        ('form-data; name="files[]"; filename="C:\\\\scans\\\\a.png"', "a.png"),  # axios; old browsers
        ('form-data; name="files"', "photo"),
        ("form-data; name=files", "photo"),
        ('form-data; name="file"; filename=""', "photo"),
    ],
)
def test_file_names_of_other_clients_are_read(open_client, disposition, name):
    photo = png(
        np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    )  # more than a field may have
    body = part('form-data; name="outscale"', b"1") + part(disposition, photo) + b"--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    accepted = open_client.post("/enhance", content=body, headers=headers)
    assert accepted.status_code == 202, accepted.text
    (result,) = ended(open_client, accepted.json()["job_id"])["results"]
    assert (result["original_filename"], result["width"]) == (name, 200)
    assert open_client.get(result["url"]).status_code == 200


def test_form_in_an_undefined_charset_is_refused(open_client):
    headers = {"content-type": "multipart/form-data; boundary=x; charset=undefined"}
    body = part('form-data; name="outscale"', b"1") + b"--x--\r\n"
    answer = open_client.post("/enhance", content=body, headers=headers)
    assert answer.status_code == 422 and "invalid form" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/enhance", "/quote"])
@pytest.mark.parametrize(
    "content_type", ["image/png", "application/json", "application/x-www-form-urlencoded", None]
)
def test_body_that_is_no_multipart_form_gets_instructions(open_client, path, content_type):
    headers = {"content-type": content_type} if content_type else {}
    answer = open_client.post(path, content=png(np.zeros((9, 9, 3), np.uint8)), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        f"the body is {content_type or 'not a form'}; send multipart/form-data, field files"
    )


def test_options_in_the_query_are_those_of_the_form(open_client, rng):
    files = {"files": ("a.png", png(photo_like(rng, 20, 30)))}
    quotes = [
        open_client.post("/quote", params=query, data=form, files=files).json()
        for query, form in (({"outscale": 2}, {}), ({}, {"outscale": "2"}))
    ]
    assert [(quote["width"], quote["height"]) for quote in quotes] == [(60, 40)] * 2
    accepted = open_client.post("/enhance", params={"outscale": 2, "format": "webp"}, files=files)
    (result,) = ended(open_client, accepted.json()["job_id"])["results"]
    assert (result["width"], result["url"][-5:]) == (60, ".webp")
    for query in ({"outscale": "9"}, {"scale": "2"}, {"files": "a.png"}, {"quality": ""}):
        assert open_client.post("/enhance", params=query, files=files).status_code == 422


@pytest.mark.parametrize(
    ("query", "form"),
    [({}, {"outscale": ["2", "4"]}), ({"outscale": ["2", "2"]}, {}), ({"outscale": 2}, {"outscale": "2"})],
)
def test_option_that_is_sent_twice_gets_422(open_client, rng, query, form):
    files = {"files": ("a.png", png(photo_like(rng, 20, 30)))}
    answer = open_client.post("/enhance", params=query, data=form, files=files)
    assert answer.status_code == 422 and "outscale is sent twice" in answer.json()["error"]


def test_message_about_weights_has_no_path(tmp_path):
    """The summary is complete, parentheses included; the details are for the log."""
    error = WeightsUnavailable("custom/my (old) was removed", f"({tmp_path}/my.pth does not exist)")
    assert str(pickle.loads(pickle.dumps(error))) == (
        f"custom/my (old) was removed ({tmp_path}/my.pth does not exist)"
    )
    message = server.Server(settings_in(tmp_path)).service.user_message(error)
    assert message == "custom/my (old) was removed; choose another model, or check the server's network"


def test_event_stream_ends_for_good(client, rng):
    job = posted(client, ("a.png", png(photo_like(rng, 20, 20))))["job_id"]
    path = f"/status/{job}/events"
    events = client.get(path).text.strip().split("\n\n")
    *updates, end = events
    assert end.startswith("id: end\nevent: end\ndata: ") and not any("event:" in update for update in updates)
    assert json.loads(end.rpartition("data: ")[2]) == client.get(f"/status/{job}").json()
    again = client.get(path, headers={"last-event-id": "end"})
    assert (again.status_code, again.content) == (204, b"")
    assert client.get(path).text.strip() == end, "a new stream reports the end once more"
