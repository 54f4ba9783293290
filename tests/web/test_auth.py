import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from restorer.web import auth, middleware
from restorer.web.auth import ApiKeyMiddleware
from restorer.web.middleware import BodyLimitMiddleware, RouteAllowlist, SameOriginMiddleware

KEY = "schlüssel"


async def secret(request):
    return PlainTextResponse("secret")


def client(**options) -> TestClient:
    routes = [Route("/{path:path}", secret, methods=["GET", "POST", "DELETE"])]
    app = Starlette(routes=routes, middleware=[Middleware(ApiKeyMiddleware, key=KEY)])
    return TestClient(app, follow_redirects=False, **options)


HEADER = {"X-API-KEY": KEY.encode()}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "//", "/%2e%2e/x", "/startup-events"])
@pytest.mark.parametrize("key", [None, b"", b"wrong", KEY.encode()[:-1], b"\xff\xfe"])
def test_without_the_key_nothing_passes(method, path, key):
    response = client().request(method, path, headers={} if key is None else {"X-API-KEY": key})
    assert response.status_code == 401
    assert "secret" not in response.text
    assert KEY not in response.text


def test_the_header_opens():
    assert client().get("/config", headers=HEADER).text == "secret"


def test_what_gradio_asks_itself_at_the_start_stays_open():
    assert client().get("/gradio_api/startup-events").status_code == 200


def test_a_browser_signs_in_and_stays_signed_in():
    browser = client(headers={"accept": "text/html"})
    form = browser.get("/")
    assert form.status_code == 401
    assert 'name="key"' in form.text
    wrong = browser.post("/", data={"key": "wrong"})
    assert wrong.status_code == 401
    assert "not the key" in wrong.text
    assert not browser.cookies
    right = browser.post("/", data={"key": KEY})
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert KEY.lower() not in cookie
    assert browser.get("/config").text == "secret"


def test_the_cookie_of_another_site_or_key_does_not_open():
    browser = client()
    browser.post("/", data={"key": KEY})
    assert browser.get("/config").text == "secret"
    assert browser.get("/config", headers={"origin": "http://evil.example"}).status_code == 401
    assert browser.get("/config", headers={"origin": "http://[evil"}).status_code == 401
    forged = {"origin": "http://evil.example", "x-forwarded-host": "evil.example"}
    assert browser.get("/config", headers=forged).status_code == 401
    for site, expected in (("cross-site", 401), ("same-site", 401), ("same-origin", 200), ("none", 200)):
        assert browser.get("/config", headers={"sec-fetch-site": site}).status_code == expected
    assert browser.get("/config", headers={"origin": "http://testserver"}).status_code == 200
    token = browser.cookies["restorer_session"]
    for forged in (token[:-1], token + "0", "", "é"):
        response = client().get("/config", headers={"cookie": f"restorer_session={forged}".encode()})
        assert response.status_code == 401


def test_another_site_cannot_sign_a_browser_in():
    response = client().post("/", data={"key": KEY}, headers={"origin": "http://evil.example"})
    assert response.status_code == 401


def test_a_huge_form_is_not_read():
    assert client().post("/", data={"key": "x" * 1_000_000}).status_code == 401


def test_wrong_keys_wait_longer_each_time_and_right_ones_do_not(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(auth.asyncio, "sleep", sleep)
    one = client()
    for _ in range(14):
        assert one.get("/config", headers={"X-API-KEY": "wrong"}).status_code == 401
    assert one.get("/config").status_code == 401, "no key is no guess"
    assert one.get("/config", headers=HEADER).text == "secret"
    assert len(waits) == 9 and waits == sorted(waits) and waits[-1] == 5
    assert one.get("/config", headers={"cookie": "restorer_session=guess"}).status_code == 401
    assert len(waits) == 10, "a cookie is a guess too"


def test_many_wrong_keys_at_once_are_not_even_looked_at(monkeypatch):
    really = asyncio.sleep

    async def run():
        over = asyncio.Event()  # of all waits
        monkeypatch.setattr(auth.asyncio, "sleep", lambda seconds: over.wait())
        app = Starlette(routes=[Route("/", secret)], middleware=[Middleware(ApiKeyMiddleware, key=KEY)])
        transport = httpx.ASGITransport(app=app, client=("10.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as attacker:
            guesses = [attacker.get("/", headers={"X-API-KEY": str(n)}) for n in range(60)]
            tried = [asyncio.ensure_future(guess) for guess in guesses]
            for _ in range(10_000):  # until five had their free guess and the others found ten waiting
                if sum(one.done() for one in tried) == 50:
                    break
                await really(0.001)
            token = auth.ApiKeyMiddleware(app, KEY)._token.decode()
            signed_in = await attacker.get("/", headers={"cookie": f"restorer_session={token}"})
            assert signed_in.status_code == 200, "who is signed in is not shut out"
            over.set()
            answers = [answer.status_code for answer in await asyncio.gather(*tried)]
        other = httpx.ASGITransport(app=app, client=("10.0.0.2", 1))
        async with httpx.AsyncClient(transport=other, base_url="http://here") as owner:
            assert (await owner.get("/", headers=HEADER)).status_code == 200
        return answers

    answers = asyncio.run(run())
    assert answers.count(401) == 15 and answers.count(429) == 45


def needed(*, own=()) -> TestClient:
    async def told(request):
        return PlainTextResponse(f"secret?{request.url.query}")

    routes = [Route("/{path:path}", told, methods=["GET", "POST"])]
    gate = Middleware(RouteAllowlist, ours=lambda scope: scope["path"] in own, calls=("enhance",))
    return TestClient(Starlette(routes=routes, middleware=[gate]))


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1/x",
        "/gradio_api/file=https:%2F%2Fexample.org",
        "/gradio_api/file= HTTP://x",
        "/gradio_api//FILE=ftp://x",
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/run/enhance",
        "/gradio_api/call/other",
        "/gradio_api/call/v2/other/id",
        "/gradio_api/component_server",
        "/config/",
        "/gradio_api//info",
        "/status",
    ],
)
def test_what_nobody_needs_of_gradio_is_not_there(path):
    assert needed().get(path).status_code == 404


def test_what_is_needed_of_gradio_is_there_with_a_query_that_is_understood():
    app = needed(own=("/status",))
    for path in ("/", "/config"):
        assert app.get(f"{path}?page=x&deep_link=y").text == "secret?"
    assert app.get("/gradio_api/info?serialize=False").text == "secret?page="
    for path in ("file=/tmp/a.png", "file=C:/tmp/a.png", "call/enhance/id", "upload_progress"):
        assert app.get(f"/gradio_api/{path}?a=b").text == "secret?a=b"
    assert app.get("/status").text == "secret?"


def front(proxies="", client=("10.0.0.1", 1), host="photos.example") -> TestClient:
    async def told(request):
        return JSONResponse([str(request.base_url), request.client.host, sorted(request.headers)])

    routes = [Route("/{path:path}", told, methods=["GET", "POST", "DELETE"])]
    app = Starlette(routes=routes, middleware=[Middleware(SameOriginMiddleware, proxies=proxies)])
    return TestClient(app, base_url=f"http://{host}", client=client)


SAID = {
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "said.example, other",
    "x-forwarded-prefix": "/said",
    "x-gradio-server": "https://said.example",
    "forwarded": "host=said.example",
}


@pytest.mark.parametrize(
    ("proxies", "base", "client"),
    [
        ("", "http://photos.example/", "10.0.0.1"),
        ("10.0.0.2,10.1.0.0/16", "http://photos.example/", "10.0.0.1"),
        ("10.0.0.1", "https://said.example/", "1.2.3.4"),
        ("10.0.0.0/8", "https://said.example/", "1.2.3.4"),
        ("*", "https://said.example/", "1.2.3.4"),
    ],
)
def test_only_a_proxy_that_is_named_is_believed_and_nobody_reads_on(proxies, base, client):
    told = front(proxies).get("/", headers=SAID).json()
    assert told[:2] == [base, client]
    assert not set(told[2]) & set(middleware._UNTRUSTED_HEADERS)


@pytest.mark.parametrize(("proxies", "warnings"), [("", 1), ("10.0.0.1", 0)])
def test_a_proxy_that_nobody_named_is_told_of_once(proxies, warnings, caplog):
    app = front(proxies)
    for _ in range(3):
        app.get("/", headers=SAID)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "a proxy at 10.0.0.1 is not believed"
    ] * warnings
    app = front()
    app.get("/")
    assert len(caplog.records) == warnings, "nothing stands between"


FOREIGN = (
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://[evil"},
    {"origin": "http://evil.example", "x-forwarded-host": "evil.example"},
    {"origin": "http://photos.example", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_site_may_send_nothing_and_read_nothing(headers):
    app = front()
    for method in ("POST", "DELETE", "OPTIONS", "PUT", "PATCH"):
        more = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
        answer = app.request(method, "/", headers=headers | more)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = app.get("/", headers=headers)
    assert answer.status_code == 200, "a link, a frame"
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("proxies", "headers"),
    [
        ("", {}),
        ("", {"origin": "http://photos.example"}),
        ("", {"origin": "http://elsewhere.example", "sec-fetch-site": "same-origin"}),
        ("10.0.0.1", {"origin": "https://said.example", **SAID}),
    ],
)
def test_programs_and_pages_of_its_own_may(proxies, headers):
    assert front(proxies).post("/", headers=headers).status_code == 200


def test_a_body_beyond_the_limit_is_refused_announced_or_not():
    async def taken(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/", taken, methods=["POST"])]
    app = TestClient(Starlette(routes=routes, middleware=[Middleware(BodyLimitMiddleware, limit=1000)]))

    def chunks(count):
        yield from [b"x" * 100] * count

    assert app.post("/", content=b"x" * 1000).text == "1000"
    assert app.post("/", content=chunks(10)).text == "1000"
    for body in (b"x" * 1001, chunks(11)):
        answer = app.post("/", content=body)
        assert (answer.status_code, answer.json()["limit"]) == (413, 1000)
