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


RIGHT_HEADERS = (
    HEADER,
    {"authorization": b"Bearer " + KEY.encode()},
    {"authorization": b"bearer  " + KEY.encode()},
)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "//", "/%2e%2e/x", "/startup-events"])
@pytest.mark.parametrize("key", [None, b"", b"wrong", KEY.encode()[:-1], b"\xff\xfe"])
def test_requests_without_the_key_get_401(method, path, key):
    response = client().request(method, path, headers={} if key is None else {"X-API-KEY": key})
    assert response.status_code == 401
    assert "secret" not in response.text
    assert KEY not in response.text


@pytest.mark.parametrize("path", ["/config", "/metrics", "/health", "/ready"])
@pytest.mark.parametrize("headers", RIGHT_HEADERS)
def test_key_in_header_is_accepted(path, headers):
    assert client().get(path, headers=headers).text == "secret"


@pytest.mark.parametrize(
    "authorization", [b"Bearer", b"Bearer wrong", b"Basic " + KEY.encode(), KEY.encode(), b"Bearer\xff"]
)
def test_other_authorization_gets_401_with_a_challenge(authorization):
    response = client().get("/config", headers={"authorization": authorization})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def test_only_an_event_stream_reads_the_key_from_the_query():
    query = {"access_token": KEY}
    assert client().get("/status/x/events", params=query).text == "secret"
    for path in ("/status/x", "/metrics", "/", "/ready"):
        assert client().get(path, params=query).text != "secret"
    assert client().get("/status/x/events", params={"access_token": "wrong"}).status_code == 401
    assert client().get("/status/x/events", params=query, headers={"x-api-key": "wrong"}).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready"])
@pytest.mark.parametrize("status", [200, 503])
def test_probes_without_key_get_the_status_alone(path, status):
    async def probe(request):
        return JSONResponse({"model": "secret"}, status, {"x-model": "secret"})

    app = Starlette(routes=[Route(path, probe)], middleware=[Middleware(ApiKeyMiddleware, key=KEY)])
    probes = TestClient(app)
    answer = probes.get(path)
    assert (answer.status_code, answer.json()) == (
        status,
        {"status": "ok"} if status == 200 else {"error": "unavailable"},
    )
    assert "x-model" not in answer.headers
    assert probes.head(path).status_code == status
    assert probes.get(path, headers=HEADER).json() == {"model": "secret"}
    for guess in ({"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
        assert probes.get(path, headers=guess).status_code == 401, "not an oracle for keys"
    assert probes.get(f"{path}/x").status_code == 401


def test_gradio_startup_route_is_public():
    assert client().get("/gradio_api/startup-events").status_code == 200


def test_browser_signs_in_and_stays_signed_in():
    browser = client(headers={"accept": "text/html"})
    form = browser.get("/")
    assert form.status_code == 401
    assert 'name="key"' in form.text
    wrong = browser.post("/", data={"key": "wrong"})
    assert wrong.status_code == 401
    assert "Wrong API key" in wrong.text
    assert not browser.cookies
    right = browser.post("/", data={"key": KEY})
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert KEY.lower() not in cookie
    assert browser.get("/config").text == "secret"
    token = browser.cookies["restorer_session"]
    for other in ('a={"x":1}', "a=b c", "x", "a[]=1"):  # of programs on other ports of the host
        cookie = f"{other}; restorer_session={token}; b=2"
        assert client().get("/config", headers={"cookie": cookie}).text == "secret", other


def test_cross_site_or_forged_cookie_is_refused():
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


def test_signed_in_browser_follows_links_of_other_sites():
    browser = client()
    browser.post("/", data={"key": KEY})
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert browser.get("/", headers=link).text == "secret"
    assert browser.post("/", headers=link).status_code == 401
    for mode in ("cors", "no-cors", "websocket"):
        assert browser.get("/", headers=link | {"sec-fetch-mode": mode}).status_code == 401


def test_cookie_over_tls_is_partitioned():
    browser = client(base_url="https://testserver")
    cookie = browser.post("/", data={"key": KEY}).headers["set-cookie"]
    assert cookie.endswith("HttpOnly; SameSite=None; Secure; Partitioned")


@pytest.mark.parametrize(("key", "warnings"), [("x" * 15, 1), ("x" * 16, 0)])
def test_short_key_is_logged_without_the_key(key, warnings, caplog):
    ApiKeyMiddleware(secret, key)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["API_KEY has 15 characters and may be guessed; use at least 16"] * warnings


def test_another_site_cannot_sign_in_a_browser():
    response = client().post("/", data={"key": KEY}, headers={"origin": "http://evil.example"})
    assert response.status_code == 401


def test_huge_sign_in_form_is_refused():
    assert client().post("/", data={"key": "x" * 1_000_000}).status_code == 401


def test_delay_grows_with_each_wrong_key(monkeypatch):
    delays = []

    async def sleep(seconds):
        delays.append(seconds)

    monkeypatch.setattr(auth.asyncio, "sleep", sleep)
    browser = client()
    for _ in range(14):
        assert browser.get("/config", headers={"X-API-KEY": "wrong"}).status_code == 401
    assert browser.get("/config").status_code == 401, "a request without a key is not a guess"
    assert browser.get("/config", headers=HEADER).text == "secret"
    assert len(delays) == 9 and delays == sorted(delays) and delays[-1] == 5
    assert browser.get("/config", headers={"cookie": "restorer_session=guess"}).status_code == 401
    assert len(delays) == 10, "a wrong cookie is a guess"


def test_concurrent_wrong_keys_get_429_unchecked(monkeypatch):
    real_sleep = asyncio.sleep

    async def run():
        delays_over = asyncio.Event()
        monkeypatch.setattr(auth.asyncio, "sleep", lambda seconds: delays_over.wait())
        app = Starlette(routes=[Route("/", secret)], middleware=[Middleware(ApiKeyMiddleware, key=KEY)])
        transport = httpx.ASGITransport(app=app, client=("10.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as attacker:
            requests = [attacker.get("/", headers={"X-API-KEY": str(n)}) for n in range(60)]
            tasks = [asyncio.ensure_future(request) for request in requests]
            for _ in range(10_000):  # until 5 are answered at once, 10 are delayed and 45 refused
                if sum(task.done() for task in tasks) == 50:
                    break
                await real_sleep(0.001)
            token = auth.ApiKeyMiddleware(app, KEY)._token.decode()
            signed_in = await attacker.get("/", headers={"cookie": f"restorer_session={token}"})
            assert signed_in.status_code == 200, "signed-in users are not locked out"
            for headers in RIGHT_HEADERS:
                assert (await attacker.get("/", headers=headers)).status_code == 200
            assert (await attacker.post("/", data={"key": "wrong"})).status_code == 429
            assert (await attacker.post("/", data={"key": KEY})).status_code == 303
            delays_over.set()
            statuses = [response.status_code for response in await asyncio.gather(*tasks)]
        other = httpx.ASGITransport(app=app, client=("10.0.0.2", 1))
        async with httpx.AsyncClient(transport=other, base_url="http://here") as owner:
            assert (await owner.get("/", headers=HEADER)).status_code == 200
        return statuses

    statuses = asyncio.run(asyncio.wait_for(run(), 120))
    assert statuses.count(401) == 15 and statuses.count(429) == 45


def allowlist_client(*, own_paths=()) -> TestClient:
    async def echo_query(request):
        return PlainTextResponse(f"secret?{request.url.query}")

    routes = [Route("/{path:path}", echo_query, methods=["GET", "POST"])]
    allowlist = Middleware(
        RouteAllowlist, is_own_route=lambda scope: scope["path"] in own_paths, endpoints=("enhance",)
    )
    return TestClient(Starlette(routes=routes, middleware=[allowlist]))


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
def test_other_gradio_routes_get_404(path):
    assert allowlist_client().get(path).status_code == 404


def test_allowed_gradio_routes_get_a_safe_query():
    app = allowlist_client(own_paths=("/status",))
    for path in ("/", "/config"):
        assert app.get(f"{path}?page=x&deep_link=y").text == "secret?"
    assert app.get("/gradio_api/info?serialize=False").text == "secret?page="
    for path in ("file=/tmp/a.png", "file=C:/tmp/a.png", "call/enhance/id", "upload_progress"):
        assert app.get(f"/gradio_api/{path}?a=b").text == "secret?a=b"
    assert app.get("/status").text == "secret?"


def proxied_client(proxies="", client=("10.0.0.1", 1), host="photos.example") -> TestClient:
    async def echo(request):
        return JSONResponse([str(request.base_url), request.client.host, sorted(request.headers)])

    routes = [Route("/{path:path}", echo, methods=["GET", "POST", "DELETE"])]
    app = Starlette(routes=routes, middleware=[Middleware(SameOriginMiddleware, proxies=proxies)])
    return TestClient(app, base_url=f"http://{host}", client=client)


FORWARDED = {
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "forwarded.example, other",
    "x-forwarded-prefix": "/forwarded",
    "x-gradio-server": "https://forwarded.example",
    "forwarded": "host=forwarded.example",
}


@pytest.mark.parametrize(
    ("proxies", "base", "client"),
    [
        ("", "http://photos.example/", "10.0.0.1"),
        ("10.0.0.2,10.1.0.0/16", "http://photos.example/", "10.0.0.1"),
        ("10.0.0.1", "https://forwarded.example/", "1.2.3.4"),
        ("10.0.0.0/8", "https://forwarded.example/", "1.2.3.4"),
        ("*", "https://forwarded.example/", "1.2.3.4"),
    ],
)
def test_only_trusted_proxies_set_scheme_client_and_host(proxies, base, client):
    seen_base, seen_client, seen_headers = proxied_client(proxies).get("/", headers=FORWARDED).json()
    assert (seen_base, seen_client) == (base, client)
    assert not set(seen_headers) & set(middleware._UNTRUSTED_HEADERS)


@pytest.mark.parametrize(("proxies", "warnings"), [("", 1), ("10.0.0.1", 0)])
def test_untrusted_proxy_is_logged_once(proxies, warnings, caplog):
    app = proxied_client(proxies)
    for _ in range(3):
        app.get("/", headers=FORWARDED)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "ignoring X-Forwarded headers from 10.0.0.1"
    ] * warnings
    app = proxied_client()
    app.get("/")
    assert len(caplog.records) == warnings, "there is no proxy"


CROSS_SITE = (
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://[evil"},
    {"origin": "http://evil.example", "x-forwarded-host": "evil.example"},
    {"origin": "http://photos.example", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_pages_of_other_sites_can_only_navigate(headers):
    app = proxied_client()
    for method in ("POST", "DELETE", "OPTIONS", "PUT", "PATCH"):
        more = {"access-control-request-method": "POST"} if method == "OPTIONS" else {}
        answer = app.request(method, "/", headers=headers | more)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = app.get("/", headers=headers)
    assert answer.status_code == 200, "as for a link or a frame"
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("proxies", "headers"),
    [
        ("", {}),
        ("", {"origin": "http://photos.example"}),
        ("", {"origin": "http://elsewhere.example", "sec-fetch-site": "same-origin"}),
        ("10.0.0.1", {"origin": "https://forwarded.example", **FORWARDED}),
    ],
)
def test_programs_and_own_pages_can_post(proxies, headers):
    assert proxied_client(proxies).post("/", headers=headers).status_code == 200


def test_too_large_body_gets_413_announced_or_not():
    async def body_length(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/", body_length, methods=["POST"])]
    app = TestClient(
        Starlette(routes=routes, middleware=[Middleware(BodyLimitMiddleware, limit=1000, timeout=30)])
    )

    def chunks(count):
        yield from [b"x" * 100] * count

    assert app.post("/", content=b"x" * 1000).text == "1000"
    assert app.post("/", content=chunks(10)).text == "1000"
    for body in (b"x" * 1001, chunks(11)):
        answer = app.post("/", content=body)
        assert (answer.status_code, answer.json()["limit"]) == (413, 1000)
