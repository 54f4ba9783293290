"""Isolation from callers without the key, other callers, pages of other sites and untrusted proxies."""

import base64
import http.server
import json
import re
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import anyio
import gradio
import httpx
import pytest
from gradio import processing_utils
from gradio_client import Client, handle_file
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from restorer.web import auth, server
from tests.conftest import files_below, photo_like, png, sampled, save_quick_and_slow
from tests.serving import ROOT, exit_code, launched, served
from tests.web.test_rest import ended, opened, posted, settings_in

pytestmark = pytest.mark.slow

KEY = "open sesame"
STARTUP, PROBES = "/gradio_api/startup-events", ("/health", "/ready")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
# What no error response may contain: paths of the server, tracebacks
INTERNALS = (str(ROOT), str(Path(gradio.__file__).parents[1]), "Traceback", 'File "', "site-packages")


@pytest.fixture(autouse=True)
def gradio_upload_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))  # as app.py does


@dataclass
class Answer:
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    text: str = ""


async def _request(app, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
    path, _, query = target.partition("?")
    fields = {"host": "testserver", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), text.encode("latin-1")) for name, text in fields.items()],
        "client": ("10.0.0.1", 50000),
        "server": ("testserver", 80),
    }
    answer, body_sent = Answer(), False

    async def receive():
        nonlocal body_sent
        if body_sent:  # ends responses that stream without end
            await anyio.sleep(0.02)
            return {"type": "http.disconnect"}
        body_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = tuple((a.decode(), b.decode("latin-1")) for a, b in message["headers"])
        else:
            answer.text += message.get("body", b"").decode("latin-1")

    with anyio.move_on_after(120):
        try:
            await app(scope, receive, send)
        except Exception:  # noqa: BLE001  raised again after it was answered with 500
            assert answer.status == 500, (method, target, answer)
    return answer


@contextmanager
def requester(app):
    """Yield a function that sends a list of requests as they are: no client normalises their paths."""
    with TestClient(app) as client:

        async def send(requests) -> list[Answer]:
            return [await _request(app, *request) for request in requests]

        yield lambda requests: client.portal.call(send, requests)


def paths_of(routes, before="") -> set[tuple[str, str]]:
    """Every method and path of an app and its mounts, with x for path parameters."""
    paths = set()
    for route in routes:
        if isinstance(route, Mount):
            paths |= paths_of(route.routes or [], before + route.path) | {("GET", before + route.path + "/x")}
        elif isinstance(route, Route):
            path = re.sub(r"\{[^}]*\}", "x", before + route.path)
            paths |= {(method, path) for method in route.methods or ()}
        else:
            paths |= paths_of(route.original_router.routes, before)  # FastAPI's included router
    return paths


def spellings(path: str) -> list[str]:
    return [
        path,
        path + "/",
        "/" + path,
        path.replace("/", "//"),
        path.replace("a", "%61", 1),
        path.upper(),
        path + ";x",
        path + "/.",
        path + "%2e",
        path + "%00",
        path + "%20",
        "/" + path[1:].replace("/", "%2f"),
        "/" + path[1:].replace("/", "%5c"),
        "/health/.." + path,
        "/health/%2e%2e" + path,
        "/gradio_api" + path,
        "/gradio_api/.." + path,
        "/gradio_api/startup-events/.." + path,
        "/health;" + path,
        f"{path}?X-API-KEY={quote(KEY)}&key={quote(KEY)}&x-api-key={quote(KEY)}",
    ]


NO_KEY = {"authorization": f"Basic {KEY}"}
WRONG_KEYS = (
    {},
    {"x-api-key": "wrong"},
    {"cookie": "restorer_session=wrong"},
    {"authorization": f"Bearer {KEY}x"},
    NO_KEY,
)


def test_every_route_requires_key_in_any_spelling(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_LONGEST", 0)
    app = server.asgi(settings_in(tmp_path, api_key=KEY))
    routes = paths_of(app.routes)
    assert len(routes) > 80 and {("POST", "/enhance"), ("POST", "/gradio_api/queue/join")} <= routes
    count = 0
    with requester(app) as send:
        paths = sorted({path for _, path in routes})
        spelled = sampled(paths, 30)
        for path in paths:
            requests = [
                (method, spelling, key, b"")
                for method in METHODS
                for spelling in (spellings(path) if path in spelled else [path])
                for key in (WRONG_KEYS if spelling == path else WRONG_KEYS[:2])
            ]
            count += len(requests)
            for request, answer in zip(requests, send(requests), strict=True):
                _, spelling, key, _ = request
                opened = unquote(spelling.partition("?")[0])
                if opened == STARTUP:
                    assert answer.status in (200, 405), request
                elif opened in PROBES and key in ({}, NO_KEY):
                    assert answer.text in ('{"status":"ok"}', '{"error":"unavailable"}', ""), request
                else:
                    assert answer.status == 401, (request, answer.status)
                assert KEY not in answer.text and not leaks(answer, tmp_path), request
    assert count > (20_000 if spelled == paths else 6_000)


def leaks(answer, folder: Path) -> list[str]:
    """Internals of the server in an error response."""
    return [text for text in (*INTERNALS, str(folder)) if answer.status >= 400 and text in answer.text]


BODIES = (
    ({}, b""),
    ({"content-type": "application/json"}, b"{}"),
    ({"content-type": "application/json"}, b"[1"),
    ({"content-type": "application/json"}, b'{"data": []}'),
    ({"content-type": "application/json"}, b'{"data": [[]], "fn_index": 9999, "session_hash": "x"}'),
    ({"content-type": "application/json"}, b'{"data": [[]], "fn_index": 0, "session_hash": "x"}'),
    ({"content-type": "application/json"}, b'{"session_hash": "x", "fn_index": 1, "event_id": "x"}'),
    ({"content-type": "application/json"}, b'{"photo": {"path": 7}, "outscale": {"a": []}}'),
    ({"content-type": "application/x-www-form-urlencoded"}, b"key=x&files=x"),
    ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\nContent-Disposition: form-data\r\n\r\n"),
    ({"content-type": "multipart/form-data"}, b"\xff\xfe"),
)


def test_no_route_fails_for_caller_with_key(tmp_path):
    app = server.asgi(settings_in(tmp_path, api_key=KEY))
    paths = {
        *(path for _, path in paths_of(app.routes)),
        *(f"/gradio_api/call{v}/{name}" for v in ("", "/v2") for name in ("enhance", "x")),
    }
    answered, spelled = set(), sampled(sorted(paths), 30)
    with requester(app) as send:
        requests = [
            (method, spelling, {"x-api-key": KEY}, b"")
            for path in sorted(paths)
            for method in METHODS
            for spelling in [
                *(spellings(path) if path in spelled else [path]),
                path + "?page=x&deep_link=x",
                path + "?upload_id=&session_hash=",
            ]
            if "upload_id" not in spelling or "upload_progress" not in spelling
        ]
        requests += [
            (method, path, {"x-api-key": KEY, **headers}, body)
            for path in sorted({*paths, "/gradio_api/run/predict"})
            for method in ("POST", "PUT", "DELETE")
            for headers, body in BODIES
        ]
        for request, answer in zip(requests, send(requests), strict=True):
            assert 200 <= answer.status < 500, (request, answer)
            assert not leaks(answer, tmp_path), (request, answer.text[:500])
            if answer.status < 300:
                answered.add(request[1].partition("?")[0])
        (answer,) = send([("GET", "/models", {"x-api-key": KEY}, b"")])
        assert answer.status == 200, "the server stopped answering"
    assert {"/", "/config", "/models", "/ready", "/metrics", "/docs", "/gradio_api/info"} <= answered
    assert "/gradio_api/queue/status" not in answered and "/gradio_api/token" not in answered
    assert len(requests) > (20_000 if len(spelled) == len(paths) else 6_000)


# Another caller


def call_function(client, fn: int, values: list, session: str) -> str:
    """Call a function of the page and return its event stream."""
    body = {"data": values, "fn_index": fn, "session_hash": session}
    answer = client.post("/gradio_api/queue/join", json=body)
    if answer.status_code != 200:
        assert answer.status_code == 422, answer.text
        return answer.text
    return client.get(f"/gradio_api/queue/data?session_hash={session}").text


def functions(client) -> dict[int, tuple[str, list[dict]]]:
    """The page's functions by number: name and input components."""
    config = client.get("/config").json()
    by_id = {component["id"]: component for component in config["components"]}
    return {
        function["id"]: (function["api_name"], [by_id[id_] for id_ in function["inputs"]])
        for function in config["dependencies"]
        if function["backend_fn"]
    }


def values_of(inputs: list[dict]) -> list:
    return [component["props"].get("value") for component in inputs]


def test_ids_of_one_caller_are_not_revealed_to_another(tmp_path, rng):
    """An id, path or session grants access to what it names, so no public response may contain one."""
    photo = png(photo_like(rng, 20, 20))
    with opened(settings_in(tmp_path, max_output_megapixels=100)) as owner:
        session, upload = uuid.uuid4().hex, uuid.uuid4().hex
        done = posted(owner, ("my wedding.png", photo))["job_id"]
        url = ended(owner, done)["results"][0]["url"]
        large = png(photo_like(rng, 400, 400))
        slow = posted(owner, ("b.png", large), model="custom/slow", tile="32")["job_id"]
        (path,) = owner.post(
            f"/gradio_api/upload?upload_id={upload}", files={"files": ("c.png", photo)}
        ).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = owner.post("/gradio_api/call/v2/enhance", json={"photo": file}).json()["event_id"]
        by_name = {name: number for number, (name, _) in functions(owner).items()}
        number = by_name["start_1"]
        values = values_of(functions(owner)[number][1])
        body = {"data": [[file], *values[1:]], "fn_index": number, "session_hash": session}
        page = owner.post("/gradio_api/queue/join", json=body).json()["event_id"]

        other = TestClient(owner.app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
        other.portal = owner.portal
        secrets = [done, slow, session, upload, event, page, "wedding", Path(path).parent.name]
        for _, target in sorted(paths_of(owner.app.routes)):
            if "heartbeat" not in target:
                answer = other.get(target)
                assert not [secret for secret in secrets if secret in answer.text], target
                assert not [secret for secret in secrets if secret in str(answer.headers)], target

        def guesses(secret: str) -> list[str]:
            """Guesses of a caller who knows part of a secret, for example from a log."""
            return [secret[:12], secret[:-1], secret + "0", secret[:12] + "*", secret[:-1] + "g", "*", "x"]

        for guess in (*guesses(slow), *guesses(done)):
            assert other.get(f"/status/{guess}").status_code == 404
            assert other.get(f"/status/{guess}/events").status_code == 404
            assert other.delete(f"/jobs/{guess}").status_code == 404
            assert other.get(f"/processed/{guess}/0/my%20wedding_4x.png").status_code == 404
        name = urlsplit(url).path
        for guess in (name.replace("/0/", "/1/"), name.replace("/0/", "/-0/"), name + "/", name.upper()):
            assert other.get(guess).status_code == 404
        folders = [Path(path).parent, Path(path).parents[1], tmp_path, tmp_path / "processed" / done]
        files = [tmp_path / "uploads/jobs" / done / "job.json", tmp_path / "uploads/jobs" / slow / "0"]
        for target in (*folders, *files, Path(path).parent / "*", f"{path}/../../jobs/{done}/job.json"):
            assert other.get(f"/gradio_api/file={target}").status_code in (403, 404), target
        for guess in guesses(event):
            answer = other.get(f"/gradio_api/call/enhance/{guess}")
            assert answer.status_code == 404 or "404: Not Found" in answer.text
        for guess in guesses(session):
            assert "session_not_found" in other.get(f"/gradio_api/queue/data?session_hash={guess}").text
            for fn in by_name.values():
                body = {"session_hash": guess, "fn_index": fn, "event_id": page[:-1]}
                other.post("/gradio_api/cancel", json=body)
            other.post("/gradio_api/reset", json={"event_id": page[:-1]})
        assert other.get(f"/gradio_api/upload_progress?upload_id={upload[:-1]}x").status_code == 404
        for target in (f"stream/{page}", f"stream/{page}/close", "deep_link", "component_server"):
            assert other.post(f"/gradio_api/{target}", json={}).status_code == 404
        # the results of a session are in no other session
        for name in ("update", "finish"):
            number = by_name[name]
            shown = call_function(other, number, values_of(functions(owner)[number][1]), "other")
            assert '"success":true' in shown and str(tmp_path / "processed") not in shown

        owner.delete(f"/jobs/{slow}")
        assert "event: complete" in owner.get(f"/gradio_api/call/enhance/{event}").text, "was cancelled"
        events = owner.get(f"/gradio_api/queue/data?session_hash={session}").text
        started = next(job for job in (tmp_path / "uploads/jobs").iterdir() if job.name in events)
        assert ended(owner, started.name)["results"][0]["width"] == 80
        assert owner.get(url).status_code == 200


# Inputs that are not uploads


class Canary(http.server.ThreadingHTTPServer):
    """A local server that must not receive requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        canary = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                canary.requests.append(f"{self.command} {self.path} {self.headers}")
                self.send_error(502)

            do_HEAD = do_POST = do_CONNECT = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def canary():
    with Canary() as canary:
        yield canary
        canary.shutdown()


def forged_inputs(secret: Path, address: str, uploads: Path) -> list:
    """Values for a file parameter: paths and URLs in every form that Gradio accepts."""
    meta = {"meta": {"_type": "gradio.FileData"}}
    sources = [
        str(secret),
        f"file://{secret}",
        f"../../{secret.name}",
        f"{uploads}/../{secret.name}",
        f"{uploads}/link.png",
        "/etc/passwd",
        "/proc/self/environ",
        f"{address}/canary.png",
        f"{address.upper()}/canary.png",
        f"{address.replace('127.0.0.1', 'localhost')}/canary.png",
        "http://169.254.169.254/latest/meta-data/",
        "https://huggingface.co/x.png",
        "ftp://127.0.0.1/x.png",
        "\x00",
        "x" * 5000,
    ]
    forged = []
    for source in sources:
        forged += [source, {"path": source, **meta}, {"path": source, "url": source}]
    for source in (str(secret), f"{address}/canary.png"):
        forged += [{"path": source}, {"url": source, **meta}, {"path": source, "url": source, **meta}]
        forged += [{"path": "a.png", "url": source, "is_stream": True, **meta}]
    return [*forged, None, 7, [], {}, {"path": None}, {"path": 7, **meta}, {"path": ["/etc/passwd"], **meta}]


def takes_files(component: dict) -> bool:
    return component["type"] in ("file", "image", "gallery", "imageslider", "uploadbutton") or (
        component["type"] == "api" and '"path"' in json.dumps(component["props"].get("_api_info"))
    )


@pytest.fixture
def hostile(tmp_path, rng, monkeypatch, canary):
    """A server, a photo outside its folders, forged inputs; Gradio's own checks would let local URLs pass."""
    for name in ("127.0.0.1", "localhost"):
        monkeypatch.setattr(
            processing_utils,
            "PUBLIC_HOSTNAME_WHITELIST",
            [*processing_utils.PUBLIC_HOSTNAME_WHITELIST, name],
        )
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(photo_like(rng, 33, 37)))
    with opened(settings_in(tmp_path), raise_server_exceptions=False) as client:
        (tmp_path / "uploads/link.png").symlink_to(secret)
        yield client, secret, forged_inputs(secret, canary.address, tmp_path / "uploads")
    assert not canary.requests
    (tmp_path / "uploads/link.png").unlink()
    files = [path for path in files_below(tmp_path) if path != secret]
    assert not [path for path in files if path.read_bytes() == secret.read_bytes()], "copied"


def check_text(text: str, folder: Path) -> None:
    """Check that a response has neither contents of the forged paths nor internals of the server."""
    assert "root:" not in text and "canary\\n" not in text and "HF_HUB_OFFLINE=" not in text
    internals = (*INTERNALS, str(folder / "weights"), str(folder / "processed"))
    assert not [internal for internal in internals if internal in text], text[:2000]


def test_no_page_function_accepts_path_or_url_as_upload(hostile, tmp_path):
    client, _, forged = hostile
    tested = set()
    for fn, (name, inputs) in functions(client).items():
        calls = []
        for index, component in enumerate(inputs):
            if not takes_files(component):
                continue
            props = component["props"]
            is_array = props.get("_api_info", {}).get("type") == "array"
            multiple = is_array or props.get("file_count") == "multiple"
            for item in forged:
                for value in [item, [item]] if multiple else [item]:
                    values = values_of(inputs)
                    values[index] = value
                    calls.append((values, value))
        assert not calls or len(calls) > 50
        for values, value in sampled(calls, 16):
            tested.add(name)
            events = call_function(client, fn, values, uuid.uuid4().hex)
            if name not in ("pick", "pick_1", "pick_2", "remove"):  # these show the names of inputs
                check_text(events, tmp_path)
            assert "event_id" in events or "detail" in events, (name, value, events)
    assert tested == {
        "pick",
        "pick_1",
        "pick_2",
        "remove",
        "start_1",
        "update",
        "enhance",
        "enhance_batch",
        "quote",
        "look",
    }
    assert not files_below(tmp_path / "processed")


def test_no_api_endpoint_accepts_path_or_url_as_upload(hostile, tmp_path):
    client, _, forged = hostile
    for name, field in (
        ("enhance", "photo"),
        ("quote", "photo"),
        ("look", "photo"),
        ("enhance_batch", "photos"),
    ):
        lists = [[item, item] for item in forged] if name == "enhance_batch" else []
        assert len(forged) > 50
        for value in sampled([*forged, *lists], 35):
            answer = client.post(f"/gradio_api/call/v2/{name}", json={field: value})
            assert answer.status_code == 200, (value, answer.text)
            events = client.get(f"/gradio_api/call/{name}/{answer.json()['event_id']}").text
            check_text(events, tmp_path)
            # a batch completes without files and with an error for each photo
            completed = name == "enhance_batch" and "event: complete" in events
            error = "data: [[], [{" if completed else "event: error"
            assert error in events, (name, value, events)
    assert not files_below(tmp_path / "processed")


def test_rest_accepts_no_path_or_url_as_upload(hostile, tmp_path):
    client, secret, forged = hostile
    texts = sampled([item for item in forged if isinstance(item, str)], 6)
    for target in ("/enhance", "/quote", "/look"):
        for text in texts:
            for field in ("files", "file", "photo", "url", "path", "model", "face_model"):
                answer = client.post(target, data={field: text}, files={"other": ("", b"")})
                assert answer.status_code == 422, (target, field, text, answer.text)
                check_text(answer.text, tmp_path)
            data = base64.b64encode(secret.read_bytes()).decode()
            for content in (text.encode(), f"data:image/png;base64,{data}".encode()):
                answer = client.post(target, files={"files": (text, content)})
                check_text(answer.text, tmp_path)
                if target == "/enhance" and answer.status_code == 202:  # the text itself is the photo
                    status = ended(client, answer.json()["job_id"])
                    assert status["status"] == "failed" and "not an image" in status["errors"][0]["error"]
                    status["errors"][0].pop("original_filename")
                    check_text(json.dumps(status), tmp_path)
                else:
                    assert answer.status_code == 422
    for text in texts:
        target = f"/gradio_api/file={quote(text)}"
        assert client.get(target).status_code in (403, 404), text


def test_data_url_is_not_accepted_as_upload(hostile, tmp_path):
    """Its bytes are the caller's own, but would bypass the limits of uploads."""
    client, secret, _ = hostile
    data = f"data:image/png;base64,{base64.b64encode(secret.read_bytes()).decode()}"
    meta = {"meta": {"_type": "gradio.FileData"}}
    for value in (data, {"path": data}, {"path": data, **meta}, {"url": data, "path": "a.png", **meta}):
        answer = client.post("/gradio_api/call/v2/enhance", json={"photo": value})
        text = answer.text
        if answer.status_code == 200:
            text = client.get(f"/gradio_api/call/enhance/{answer.json()['event_id']}").text
        assert answer.status_code == 422 or "event: error" in text, (value, text)
        check_text(text, tmp_path)


# Pages of other sites


def test_other_sites_cannot_use_session_cookie(tmp_path, rng, monkeypatch):
    """Every route, with the cookie and the key that a browser could send for a page of another site."""
    monkeypatch.setattr(auth, "_LONGEST", 0)
    with opened(settings_in(tmp_path, api_key=KEY), follow_redirects=False) as browser:
        sign_in = browser.post("/", data={"key": KEY})
        cookie = sign_in.headers["set-cookie"].lower()
        assert sign_in.status_code == 303 and "samesite=lax" in cookie and "domain" not in cookie
        assert browser.get("/models").status_code == 200
        foreign = (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:7861"},
            {"origin": "http://evil.example", "sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        )
        photo = {"files": ("a.png", png(photo_like(rng, 9, 9)))}
        for headers in foreign:
            for method, path in sorted(paths_of(browser.app.routes)):
                if path == STARTUP:
                    continue
                answer = browser.request(method, path, headers=headers)
                assert answer.status_code == (401 if method in ("GET", "HEAD") else 403), (method, path)
                requested = {"access-control-request-method": method}
                preflight = browser.options(path, headers={**headers, **requested})
                assert preflight.status_code == 403
                for response in (answer, preflight):
                    assert not [name for name in response.headers if name.startswith("access-control")], path
            for key in ({}, {"x-api-key": KEY}):
                assert browser.post("/enhance", files=photo, headers={**headers, **key}).status_code == 403
        assert not list((tmp_path / "uploads/jobs").glob("?" * 32)), "a job was started"
        for own in ({}, {"origin": "http://127.0.0.1:7860"}, {"sec-fetch-site": "same-origin"}):
            assert browser.post("/enhance", files=photo, headers=own).status_code == 202


def test_open_server_refuses_other_sites_but_not_programs(tmp_path, rng):
    photo = {"files": ("a.png", png(photo_like(rng, 9, 9)))}
    framed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    evil = {"origin": "https://evil.example"}
    with opened(settings_in(tmp_path, forwarded_allow_ips="testclient")) as client:
        assert client.post("/enhance", files=photo, headers=evil).status_code == 403
        for target in ("queue/join", "call/v2/models", "upload", "cancel"):
            assert client.post(f"/gradio_api/{target}", json={}, headers=evil).status_code == 403
        assert client.post("/enhance", files=photo).status_code == 202
        page = client.get("/", headers=framed)  # as huggingface.co shows a Space
        assert page.status_code == 200 and "x-frame-options" not in page.headers
        space = {"x-forwarded-host": "me-app.hf.space", "x-forwarded-proto": "https"}
        own = {**space, "origin": "https://me-app.hf.space"}
        assert client.post("/enhance", files=photo, headers=own).status_code == 202
        assert client.post("/enhance", files=photo, headers={**space, **evil}).status_code == 403
        assert client.get("/config", headers=space).json()["root"] == "https://me-app.hf.space"


# Forged headers


FORGED_HEADERS = {
    "forwarded": "for=1.2.3.4;host=evil.example;proto=https",
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "/evil.example",
    "x-forwarded-port": "666",
    "x-forwarded-server": "evil.example",
    "x-gradio-server": "https://evil.example",
    "x-gradio-target-url": "https://evil.example",
    "x-original-url": "/evil.example",
    "x-rewrite-url": "/health",
    "x-http-method-override": "DELETE",
    "x-real-ip": "127.0.0.1",
}


def test_forged_headers_change_no_response(tmp_path, rng):
    with opened(settings_in(tmp_path), follow_redirects=False) as client:
        paths = sorted({path for _, path in paths_of(client.app.routes) if "heartbeat" not in path})
        for target in (*paths, "/gradio_api/info?serialize=False", "/gradio_api/call/v2/models"):
            for method in ("GET", "POST"):
                answer = client.request(method, target, headers=FORGED_HEADERS)
                assert "evil.example" not in answer.text + str(answer.headers), target
        job = posted(client, ("a.png", png(photo_like(rng, 9, 9))))["job_id"]
        ended(client, job)
        for headers in (FORGED_HEADERS, {"host": "evil.example"}):
            client.get(f"/status/{job}", headers=headers)
            client.get("/gradio_api/info", headers=headers)
            client.get("/gradio_api/call/v2/models", headers=headers)
            client.post("/gradio_api/call/v2/models", json={}, headers=headers)
        for target in (*paths, f"/status/{job}"):
            assert "evil.example" not in client.get(target).text, f"{target} has the header of another caller"
        (result,) = client.get(f"/status/{job}", headers=FORGED_HEADERS).json()["results"]
        assert result["url"].startswith("http://127.0.0.1:7860/processed/")


def test_first_caller_does_not_set_url_for_others(tmp_path):
    with opened(settings_in(tmp_path)) as client:
        for target in ("info", "call/v2/models", "openapi.json", "info?all_endpoints=True"):
            for method in ("GET", "POST"):
                client.request(method, f"/gradio_api/{target}", json={}, headers={"host": "evil.example"})
            info = client.get("/gradio_api/info").text
            assert "http://127.0.0.1:7860" in info and "evil.example" not in info + client.get("/").text


def test_malformed_requests_bypass_nothing(tmp_path):
    """Over a socket: request lines and Host headers that clients would normalise, and forged addresses."""
    save_quick_and_slow(tmp_path)
    with served(tmp_path, API_KEY=KEY, FORWARDED_ALLOW_IPS="") as address:
        port = urlsplit(address).port

        def send(line: str, *headers: str) -> tuple[int, str]:
            with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                lines = [line, *headers, "Connection: close", "", ""]
                connection.sendall("\r\n".join(lines).encode("latin-1"))
                answer = b""
                while part := connection.recv(65536):
                    answer += part
            text = answer.decode("latin-1")
            return int(text.split()[1]), text

        host = f"Host: 127.0.0.1:{port}"
        for target in (
            f"{address}/config",
            "http://evil.example/config",
            "http://evil.example/health/../config",
            "//health/config",
            "/health/../config",
            "/health#/config",
            "/config#/health",
            "/config?/health",
            "health",
            "*",
        ):
            for method in ("GET", "POST", "OPTIONS"):
                status, text = send(f"{method} {target} HTTP/1.1", host)
                assert status in (400, 401) or (target == "/health#/config" and status in (200, 405)), text
        key = f"X-API-KEY: {KEY}"
        for line, headers, allowed in (
            ("GET /config HTTP/1.0", (key,), {200}),
            ("GET /config HTTP/1.0", (key, "Origin: http://evil.example"), {200}),
            ("GET /config HTTP/1.1", (key, "Host: evil.example:99999999"), {400}),
            ("GET /config HTTP/1.1", (key, "Host: a b"), {400}),
            ("GET /config HTTP/1.1", (key, "Host: [::1"), {400}),
            ("GET /config HTTP/1.1", (key, "Host: evil.example/x?"), {400}),
            ("GET /config HTTP/1.1", (key, host, "X-Gradio-Server: http://["), {200}),
            ("GET /config HTTP/1.1", (host, "X-API-KEY: wrong", key), {401}),
            ("GET http://evil.example/models/ HTTP/1.1", (key, host), {404}),
            ("GET /models/ HTTP/1.1", (key, "Host: evil.example"), {404}),
        ):
            status, text = send(line, *headers)
            assert status in allowed, (line, headers, text[:500])
            assert "location:" not in text.lower()
        # wrong keys are counted by the real address
        started = time.monotonic()
        for number in range(8):
            forged = (
                f"X-Forwarded-For: 10.9.8.{number}",
                f"Forwarded: for=10.9.8.{number}",
                "X-Real-IP: 9.9.9.9",
            )
            assert send("GET /config HTTP/1.1", host, "X-API-KEY: wrong", *forged)[0] == 401
        assert time.monotonic() - started > 0.2 + 0.4
        with httpx.Client() as browser:
            forged = {**FORGED_HEADERS, "host": "evil.example"}
            answer = browser.post(address, data={"key": KEY}, headers=forged)
            assert (answer.status_code, answer.headers["location"]) == (303, "?")
            assert "domain" not in answer.headers["set-cookie"].lower()
            assert "secure" not in answer.headers["set-cookie"].lower()
            assert "evil" not in str(answer.headers)


def test_slow_sign_in_times_out(tmp_path):
    app, messages = server.asgi(settings_in(tmp_path, api_key=KEY, upload_timeout=0.3)), []
    headers = (b"content-type", b"application/x-www-form-urlencoded"), (b"host", b"testserver")
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}

    async def send(message):
        messages.append(message)

    async def run():
        with anyio.fail_after(120):
            await app({**scope, "scheme": "http", "client": ("10.0.0.1", 1)}, anyio.sleep_forever, send)

    anyio.run(run)
    assert messages[0]["status"] == 408


# Keys and tokens


FAILING = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import app
from restorer.inference import engine

real = engine.Guarded.__call__


def failing(self, *args, **kwargs):
    if Path({broken!r}).exists():
        raise RuntimeError("the device broke at " + {broken!r})
    return real(self, *args, **kwargs)


engine.Guarded.__call__ = failing
if __name__ == "__main__":
    app.main()
"""


@pytest.mark.long
def test_keys_and_tokens_appear_in_no_response_log_or_file(tmp_path, rng, canary):
    """Drives a server through successes and failures, then searches all that it wrote and answered."""
    save_quick_and_slow(tmp_path)
    (tmp_path / "weights/custom/torn.pth").write_bytes(b"PK\x03\x04 no weights")
    (tmp_path / "app.py").write_text(FAILING.format(root=str(ROOT), broken=str(tmp_path / "broken")))
    (temporary := tmp_path / "tmp").mkdir()
    right, token, other = "canary-right-key-1f", "hf_canaryTokenOfTheHub", "canary-of-the-environment"
    guesses = [
        f"canary-wrong-{kind}" for kind in ("header", "query", "cookie", "form", "bearer", "basic", "json")
    ]
    environment = {
        "API_KEY": right,
        "HF_TOKEN": token,
        "AWS_SECRET_ACCESS_KEY": other,
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "0",
        "HTTPS_PROXY": canary.address,  # makes every download fail
        "HTTP_PROXY": "",
        "NO_PROXY": "127.0.0.1",
        "LOG_FORMAT": "json",
        "MIN_FREE_DISK_MB": "0",
    }
    answers: list[httpx.Response] = []
    photo = png(photo_like(rng, 30, 40))
    header = {"X-API-KEY": right}
    with launched(tmp_path, tmp_path / "app.py", preloaded=False, **environment) as (process, address):

        def record(answer: httpx.Response) -> None:
            answer.read()
            answers.append(answer)

        hooks = {"response": [record]}
        with httpx.Client(base_url=address, event_hooks=hooks, timeout=60, trust_env=False) as client:
            header_, query, cookie, form, bearer, basic, body = guesses
            client.get("/config", headers={"X-API-KEY": header_})
            client.get("/config", params={"X-API-KEY": query, "key": query})
            client.get("/config", headers={"cookie": f"restorer_session={cookie}"})
            client.post("/", data={"key": form})
            client.get("/config", headers={"authorization": f"Bearer {bearer}"})
            client.get("/config", auth=("user", basic))
            client.post("/enhance", json={"key": body})
            assert [answer.status_code for answer in answers] == [401] * 7

            client.headers.update(header)
            for parameter in ("query", "body"):  # a caller with the right key may put secrets anywhere too
                client.get("/status/x", params={parameter: query})
            for target in ("/", "/config", "/docs", "/openapi.json", "/metrics", "/models", "/ready"):
                assert client.get(target).status_code == 200
            for target in ("info", "info?all_endpoints=True", "openapi.json", "app_id", "token", "user"):
                client.get(f"/gradio_api/{target}")
            for target in ("/monitoring", "/monitoring/summary", "/theme.css", "/nothing", "/login_check"):
                client.get(target)

            def job(content: bytes = photo, **options: str) -> dict:
                answer = client.post("/enhance", files={"files": ("a.png", content)}, data=options)
                return ended(client, answer.json()["job_id"]) if answer.status_code == 202 else answer.json()

            good = job()
            assert good["status"] == "completed"
            client.get(good["results"][0]["url"])
            assert "not an image" in str(job(b"no photo"))
            assert job(photo[:200])["status"] == "failed"
            torn = str(job(model="custom/torn"))
            assert "torn" in torn and str(tmp_path) not in torn
            assert "choose another model" in str(job(model="RealESRNet_x4plus"))
            assert canary.requests, "no download was tried"
            (tmp_path / "broken").touch()
            assert "see the server log" in str(job())
            programs = Client(address, headers=header, verbose=False, download_files=str(tmp_path / "got"))
            (tmp_path / "old.png").write_bytes(photo)
            with pytest.raises(Exception, match="see the server log"):
                programs.predict(handle_file(tmp_path / "old.png"), face_enhance=False, api_name="/enhance")
            (tmp_path / "broken").unlink()
            file, *_ = programs.predict(
                handle_file(tmp_path / "old.png"), face_enhance=False, api_name="/enhance"
            )
            assert Path(file).is_file()
            for target in ("queue/join", "call/v2/enhance", "run/predict", "cancel", "upload", "call/x"):
                client.post(
                    f"/gradio_api/{target}", content=b"{", headers={"content-type": "application/json"}
                )
                client.post(f"/gradio_api/{target}", json={"data": [7], "fn_index": 23, "session_hash": "s"})
            client.get("/gradio_api/queue/data?session_hash=s")
            sign_in = client.post("/", data={"key": right}, headers={"X-API-KEY": ""})
            assert sign_in.status_code == 303
        process.terminate()
        assert exit_code(process) == 0
    assert "the device broke" in (tmp_path / "log").read_text(), "the log lacks the error"
    searched = [path for path in files_below(tmp_path) if path != tmp_path / "app.py"]
    assert {"log", "job.json", "a_4x.png"} <= {path.name for path in searched}
    texts = {str(path): path.read_bytes() for path in searched}
    for number, answer in enumerate(answers):
        headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        texts[f"{number} {answer.request.method} {answer.url.path}"] = headers.encode() + answer.content
    texts["requests to other servers"] = "\n".join(canary.requests).encode()
    assert len(answers) > 60
    for secret in (right, token, other, *guesses):
        assert not [where for where, text in texts.items() if secret.encode() in text], secret
    for answer in answers:
        if answer.status_code >= 400:
            assert not leaks(Answer(answer.status_code, (), answer.text), tmp_path), answer.text


# The OpenAPI description


def fuzzed(folder: Path, *, seed: int, examples: int) -> int:
    """Send valid and invalid requests of the OpenAPI description; fail on 5xx; return their number.

    Answers must be among those of the description."""
    # They take a second to import, which each worker would spend on collecting this file
    import hypothesis
    import schemathesis
    from schemathesis.specs.openapi import checks

    conformance = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    save_quick_and_slow(folder)
    count = 0
    with served(folder, MAX_QUEUE="100000", MIN_FREE_DISK_MB="0") as address:
        schema = schemathesis.openapi.from_dict(httpx.get(f"{address}/openapi.json").json())
        modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
        with httpx.Client(timeout=60) as client:
            for result in schema.get_all_operations():
                operation = result.ok()
                for mode in modes:

                    @hypothesis.seed(seed)
                    @hypothesis.settings(
                        max_examples=examples,
                        database=None,
                        deadline=None,
                        suppress_health_check=list(hypothesis.HealthCheck),
                        phases=[hypothesis.Phase.generate],
                    )
                    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                    def send(case):
                        nonlocal count
                        count += 1
                        answer = case.call(base_url=address, timeout=60)
                        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                        plain = Answer(answer.status_code, (), answer.text)
                        assert not leaks(plain, folder), answer.text
                        case.validate_response(answer, checks=conformance)

                    try:
                        send()
                    except (hypothesis.errors.Unsatisfiable, schemathesis.errors.SchemathesisError):
                        assert mode is not modes[0], operation.label  # it has no invalid requests
            assert client.get(f"{address}/health").status_code == 200
    return count


@pytest.mark.long
def test_no_request_of_openapi_description_gets_5xx(tmp_path):
    count = fuzzed(tmp_path, seed=2310, examples=8)
    assert count > 60
