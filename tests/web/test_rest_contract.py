"""The REST contract: /openapi.json, a client generated from it, one error body, and Idempotency-Key."""

import importlib
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from restorer.options import RANGES, Options
from restorer.web import auth, service
from restorer.web.jobs import Jobs
from restorer.web.service import Service
from tests.conftest import photo_like, png, save_quick_and_slow, wait_until
from tests.serving import served
from tests.web.test_rest import (
    client,
    ended,
    opened,
    settings_in,
    uploads_of_gradio,
    wait_after_slow_tiles,
)

pytestmark = pytest.mark.slow

KEY = "a key of many characters"


__all__ = ["client", "uploads_of_gradio"]  # fixtures


def photo_form(*files: tuple[str, bytes]) -> list:
    return [("files", file) for file in files]


# The description


def generated_client(description: dict, folder: Path, monkeypatch):
    """Generate a client from an OpenAPI description and import it."""
    (folder / "openapi.json").write_text(json.dumps(description))
    binary = {media: "application/octet-stream" for media in ("image/jpeg", "image/png")}
    (folder / "config.yml").write_text(json.dumps({"post_hooks": [], "content_type_overrides": binary}))
    command = [*(sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning")]
    command += ["--path", "openapi.json", "--config", "config.yml", "--meta", "none"]
    subprocess.run([*command, "--output-path", "generated_client"], cwd=folder, check=True)
    monkeypatch.syspath_prepend(str(folder))
    calls = ("enhance", "status", "events", "processed", "delete", "quote", "ready")
    names = ("client", "models", "types", *(f"api.restore_photos.{call}" for call in calls))
    return {name.rpartition(".")[2]: importlib.import_module(f"generated_client.{name}") for name in names}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="openapi-python-client needs Python 3.11")
def test_generated_client_restores_a_photo(tmp_path, rng, monkeypatch):
    save_quick_and_slow(tmp_path)
    with served(tmp_path, API_KEY=KEY, MODEL="custom/quick") as address:
        description = httpx.get(f"{address}/openapi.json", headers={"X-API-KEY": KEY}).json()
        api = generated_client(description, tmp_path, monkeypatch)
        models, client = api["models"], api["client"].AuthenticatedClient(address, KEY)

        def photo(data: bytes, name: str):
            return api["types"].File(io.BytesIO(data), name, "image/png")

        files = [photo(png(photo_like(rng, 20, 30)), "a.png"), photo(b"no photo", "b.png")]
        faces = models.EnhanceJobFormFaceEnhance.FALSE
        form = models.EnhanceJobForm(files=files, outscale=2.0, face_enhance=faces)
        assert (form.quality, form.format_.value) == (Options.quality, Options.format), "the defaults"
        job = api["enhance"].sync(client=client, body=form, idempotency_key="one")
        assert isinstance(job, models.Accepted) and job.queue_position == 0
        events = api["events"].sync(job.job_id, client=client)
        assert isinstance(events, str) and "event: end" in events

        status = api["status"].sync(job.job_id, client=client)
        assert isinstance(status, models.Status) and status.status is models.StatusStatus.COMPLETED
        (result,), (error,) = status.results, status.errors
        assert (result.index, result.width, result.height, result.model) == (0, 60, 40, "custom/quick")
        assert isinstance(result.options, models.Options) and result.options.face_enhance == "off"
        assert (error.index, error.original_filename) == (1, "b.png") and "not an image" in error.error
        image = api["processed"].sync(job.job_id, 0, result.url.rpartition("/")[2], client=client)
        assert Image.open(image.payload).size == (60, 40)

        estimate = api["quote"].sync(
            client=client, body=models.QuotePhotoForm(files=photo(png(photo_like(rng, 20, 30)), "a.png"))
        )
        assert isinstance(estimate, models.Estimate) and (estimate.width, estimate.cost) == (120, None)
        deleted = api["delete"].sync(job.job_id, client=client)
        assert isinstance(deleted, models.Deleted) and deleted.status is models.DeletedStatus.DELETED
        missing = api["status"].sync(job.job_id, client=client)
        assert isinstance(missing, models.Error) and "no such job" in missing.error
        refused = api["ready"].sync(client=api["client"].AuthenticatedClient(address, "wrong"))
        assert isinstance(refused, models.Error) and "API key" in refused.error


def test_described_ranges_and_choices_are_those_that_are_accepted(client, rng):
    schema = form_schema(client.get("/openapi.json").json())
    assert set(schema) == {*Options.names(), "long_side", "files"}
    files = photo_form(("a.png", png(photo_like(rng, 20, 20))))

    def status(name: str, value: object) -> int:
        return client.post("/quote", files=files, data={name: str(value)}).status_code

    checked = set()
    for name, field in schema.items():
        assert name == "files" or ("default" in field and field["description"]), name
        for choice in field.get("enum", ()):
            assert status(name, choice) == 200, (name, choice)
        assert status(name, "?") == 422, name
        for limit, beyond in (("minimum", -1), ("maximum", 1)):
            if limit in field:
                assert status(name, field[limit] + beyond) == 422, (name, limit)
                if name not in ("denoise", "long_side"):  # whose limits depend on model and photo
                    assert status(name, field[limit]) == 200, (name, limit)
                checked.add(name)
    assert {*RANGES, "tile", "long_side"} <= checked


def form_schema(description: dict) -> dict:
    body = description["paths"]["/quote"]["post"]["requestBody"]
    return body["content"]["multipart/form-data"]["schema"]["properties"]


def test_every_field_of_an_answer_is_described(client):
    """In OpenAPI 3.0, as Swagger UI 4 needs: no null type, no const."""
    description = client.get("/openapi.json").json()
    schemas = description["components"]["schemas"]
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    described = json.dumps(content["schema"])
                    error = status == "default" or int(status) >= 400
                    assert ("/Error" in described) == error and described != "{}", (path, status, media_type)
    assert {name for name, schema in schemas.items() if not schema.get("description")} == set()
    assert description["openapi"].startswith("3.0")
    assert '"null"' not in json.dumps(description) and '"const"' not in json.dumps(description)
    assert "image/avif" in json.dumps(description["paths"]["/processed/{job_id}/{index}/{name}"])


# Errors


def test_every_error_has_the_same_body(tmp_path, rng, monkeypatch):
    small = photo_form(("a.png", png(photo_like(rng, 20, 20))))
    key = {"X-API-KEY": KEY}
    settings = settings_in(tmp_path, api_key=KEY, max_file_size_mb=1, upload_timeout=0.1)
    with opened(settings, raise_server_exceptions=False) as client:
        description = client.get("/openapi.json", headers=key).json()
        fields = set(description["components"]["schemas"]["Error"]["properties"])

        def check(status: int, method: str, path: str, **request) -> dict:
            answer = client.request(method, path, **{"headers": key, **request})
            assert answer.status_code == status, answer.text
            assert isinstance(answer.json()["error"], str) and set(answer.json()) <= fields, answer.text
            assert ("retry-after" in answer.headers) == (status in (429, 503, 507))
            return answer.json()

        check(400, "GET", "/models", headers={**key, "host": "a b"})
        check(401, "GET", "/status/x", headers={})
        check(401, "POST", "/nothing", headers={"X-API-KEY": "wrong"})
        check(403, "POST", "/enhance", headers={**key, "origin": "http://evil.example"})
        check(404, "GET", "/nothing")
        check(404, "GET", "/status/x")
        check(405, "PUT", "/enhance")
        check(405, "POST", "/docs")
        assert check(413, "POST", "/enhance", files=[*small, ("files", ("b.png", b"x" * (2**20 + 1)))]) == {
            "error": "b.png has 1048577 bytes; the limit is 1048576",
            "index": 1,
            "original_filename": "b.png",
            "limit": 2**20,
        }
        check(422, "GET", "/processed/x/first/a.png")
        check(422, "POST", "/enhance")
        assert "outscale" in check(422, "POST", "/quote", files=small, data={"sharpen": "1"})["allowed"]
        monkeypatch.setattr(auth._Throttle, "is_full", lambda *_: True)
        check(429, "GET", "/status/x", headers={"X-API-KEY": "wrong"})
        monkeypatch.setattr(Service, "models", lambda _: 1 / 0)
        assert check(500, "GET", "/models") == {"error": "unexpected error; see the server log"}
        monkeypatch.setattr(service, "free_bytes", lambda _: -1)
        check(503, "GET", "/ready")
        check(507, "POST", "/enhance", files=small)


def test_error_of_a_file_names_the_file(tmp_path, rng):
    fine, large = png(photo_like(rng, 10, 10)), png(photo_like(rng, 60, 60))
    with opened(settings_in(tmp_path, max_output_megapixels=0.01)) as client:
        files = photo_form(("a.png", fine), ("b.png", large))
        refused = client.post("/enhance", files=files).json()
        assert (refused["index"], refused["original_filename"], refused["limit"]) == (1, "b.png", 10_000)
        refused = client.post("/enhance", files=photo_form(("a.png", large)), data={"long_side": "5"}).json()
        assert (refused["index"], refused["original_filename"]) == (0, "a.png")
        refused = client.post("/quote", files=photo_form(("a.png", b"no"))).json()
        assert (refused["index"], refused["original_filename"]) == (0, "a.png")
        names = ["bad.png", "a.png", "bad.png"]
        files = photo_form(*((name, b"no" if name == "bad.png" else fine) for name in names))
        status = ended(client, client.post("/enhance", files=files).json()["job_id"])
        assert [error["index"] for error in status["errors"]] == [0, 2]
        assert [result["index"] for result in status["results"]] == [1]


# Idempotency-Key


def submit(client, key: str, photo: bytes, **options: str) -> httpx.Response:
    files = photo_form(("a.png", photo))
    return client.post("/enhance", files=files, data=options, headers={"Idempotency-Key": key})


def test_same_key_returns_the_same_job_until_it_is_deleted(tmp_path, rng):
    settings, photo = settings_in(tmp_path), png(photo_like(rng, 20, 20))
    with opened(settings) as client:
        first = submit(client, "one", photo, outscale="2")
        job = first.json()["job_id"]
        assert submit(client, "two", photo, outscale="2").json()["job_id"] != job
        assert submit(client, "", photo).json()["job_id"] != submit(client, "", photo).json()["job_id"]
        ended(client, job)
        again = submit(client, "one", photo, outscale="2.0")
        assert (again.status_code, again.json()["status"]) == (202, "completed")
        assert again.json()["job_id"] == job and again.headers["location"] == first.headers["location"]
    with opened(settings) as client:
        assert submit(client, "one", photo, outscale="2").json()["job_id"] == job, "after a restart"
        assert client.delete(f"/jobs/{job}").json()["status"] == "deleted"
        assert submit(client, "one", photo, outscale="2").json()["job_id"] != job


def test_key_with_another_body_gets_422_with_the_key(client, rng):
    photo = png(photo_like(rng, 20, 20))
    job = submit(client, "one", photo).json()["job_id"]
    renamed = client.post("/enhance", files=photo_form(("b.png", photo)), headers={"Idempotency-Key": "one"})
    for refused in (
        submit(client, "one", png(photo_like(rng, 20, 20))),
        submit(client, "one", photo, outscale="2"),
        renamed,
    ):
        assert refused.status_code == 422 and "Idempotency-Key 'one'" in refused.json()["error"]
    assert submit(client, "one", photo).json()["job_id"] == job
    assert submit(client, "x" * 256, photo).status_code == 422


def test_one_job_is_accepted_if_requests_with_a_key_arrive_at_once(client, tmp_path, rng):
    photo = png(photo_like(rng, 20, 20))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit(client, "one", photo), range(8)))
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert len(list((tmp_path / "uploads/jobs").glob("*/job.json"))) == 1


def test_full_queue_returns_the_job_of_a_key(tmp_path, rng, monkeypatch):
    photo = png(photo_like(rng, 200, 200))
    wait_after_slow_tiles(monkeypatch, lambda: wait_until(lambda: finished))
    finished: list[bool] = []
    with opened(settings_in(tmp_path, max_queue=1, max_output_megapixels=100)) as client:
        jobs = [submit(client, key, photo, model="custom/slow", tile="32").json() for key in ("one", "two")]
        assert [job["queue_position"] for job in jobs] == [0, 1]
        assert submit(client, "three", photo).status_code == 503
        again = submit(client, "two", photo, model="custom/slow", tile="32")
        assert again.json() == jobs[1]
        for job in jobs:
            client.delete(f"/jobs/{job['job_id']}")
        finished.append(True)


def test_key_is_part_of_the_record(tmp_path):
    jobs = Jobs(tmp_path / "jobs", tmp_path / "results")
    job = jobs.add([], {}, key="one", digest="0f")
    assert Jobs(tmp_path / "jobs", tmp_path / "results").find("one") == job
    assert jobs.find("") is None and jobs.find("other") is None
