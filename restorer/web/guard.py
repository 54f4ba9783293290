"""What stands before the app: who may ask, from where, for what, and how much."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Container
from http.cookies import CookieError, SimpleCookie
from typing import NoReturn
from urllib.parse import parse_qs, urlsplit

import anyio
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_COOKIE = "restorer_session"
_MONTH = 30 * 24 * 3600
# Gradio asks itself for the first while it starts; both tell no more than that the server is there
_OPEN = ("/gradio_api/startup-events", "/health")
_FREE, _AT_ONCE, _LONGEST = 5, 10, 5.0  # wrong keys without a wait, those waiting, and seconds of a wait
_FORGET, _ADDRESSES = 600, 10_000  # seconds until wrong keys are forgotten, and of how many they are known
_LARGEST_FORM = 4096
_BODY_SECONDS, _BODY_PACE = 30, 20_000  # that a body has, and bytes that earn it a second more
_HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d{1,5})?", re.ASCII)
# What Gradio and its clients read although any client may write it: the scheme and the Host are what counts
_HEARSAY = ("forwarded", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-gradio-server")
# Of Gradio's routes what the page and gradio_client need, each with the query it is given in place of the
# request's own: a page or a link that is not there is an error of Gradio's, and /info without a page is told
# to everybody with the address that the first who asked came by
_NEEDED: tuple[tuple[re.Pattern[str], bytes | None], ...] = (
    (re.compile(r"/(config)?"), b""),
    (re.compile(r"/gradio_api/info"), b"page="),
    (re.compile(r"/(theme\.css|robots\.txt|favicon\.ico|(static|assets)/.+)"), None),
    (re.compile(r"/gradio_api/(startup-events|theme\.css|upload|upload_progress|cancel|reset)"), None),
    (re.compile(r"/gradio_api/(queue/(join|data)|heartbeat/[\w-]+|call/(v2/)?\w+(/[\w-]+)?)"), None),
    (re.compile(r"/gradio_api/run/predict"), None),
    (re.compile(r"/gradio_api/file=(?!\s*[a-z]{2,}\s*:).+", re.DOTALL | re.IGNORECASE), None),
)
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Neural Image Restore</title>
<style>body{{font:16px system-ui;display:grid;place-items:center;min-height:90vh;color-scheme:light dark}}
form{{display:grid;gap:.8rem;width:18rem}}input,button{{font:inherit;padding:.5rem}}</style>
<form method="post"><h1>Neural Image Restore</h1><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button><p role="alert">{}</p></form></html>"""


class Front:
    """ASGI middleware in the place of Gradio's CORS: which address was asked, and whether by a page of ours.

    A proxy that is named is believed what it says of scheme, client and host; from here on there is only the
    one scheme and the one Host. A page of another site can read nothing, for no answer lets it, and may not
    send anything. Programs send neither Origin nor Sec-Fetch-Site.
    """

    def __init__(self, app: ASGIApp, *, proxies: str, **_of_gradio: object) -> None:
        self.app = app
        self._proxy = ProxyHeadersMiddleware(self._asked, proxies)  # type: ignore[arg-type]
        self._told = False  # of a proxy that was forgotten, once: or strangers would fill the log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = MutableHeaders(scope=scope)
        client = scope.get("client")
        host = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        named = bool(client) and client[0] in self._proxy.trusted_hosts
        if host and named:
            headers["host"] = host
        if client and not named and not self._told and "x-forwarded-proto" in headers:
            self._told = True
            log = logging.getLogger(__name__)
            log.warning(
                "a proxy at %s is not believed: name it in FORWARDED_ALLOW_IPS if it is yours", client[0]
            )
        await self._proxy(scope, receive, send)  # type: ignore[arg-type]

    async def _asked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        for name in _HEARSAY:
            del headers[name]
        reads = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if not _HOST.fullmatch(headers.get("host", "")):
            refusal = JSONResponse({"detail": "the header Host is no name and no address"}, 400)
        elif reads or _same_site(Request(scope)):
            return await self.app(scope, receive, send)
        else:
            refusal = JSONResponse({"detail": "this is not for pages of other sites"}, 403)
        await refusal(scope, receive, send)


class KeyGuard:
    """ASGI middleware that answers 401 to whoever brings no key.

    Programs send X-API-KEY. A browser gets a form; the right key is answered with a cookie that is a
    keyed hash, so that the server keeps no sessions and a restart signs nobody out.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key, self._brake = app, key.encode(), _Brake()
        self._token = hmac.new(self._key, b"browser session", hashlib.sha256).hexdigest().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":  # the app has none
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _OPEN:
            return await self.app(scope, receive, send)
        address = request.client.host if request.client else ""
        if self._has_session(request):  # which nobody guesses, so no attack on a key shuts it out
            return await self.app(scope, receive, send)
        if self._brake.full(address):
            response = JSONResponse({"detail": "too many wrong keys"}, 429, {"Retry-After": "5"})
        elif self._has_key(request):
            return await self.app(scope, receive, send)
        else:
            response = await self._refuse(request)
            guess = "x-api-key" in request.headers or _COOKIE in request.headers.get("cookie", "")
            if response.status_code == 401 and (guess or _is_form(request)):
                await self._brake.slow(address)
        return await response(scope, receive, send)

    def _has_key(self, request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("x-api-key", "").encode("latin-1"), self._key)

    def _has_session(self, request: Request) -> bool:
        if not _same_site(request):
            return False
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(
            cookie.value.encode("latin-1", "replace"), self._token
        )

    async def _refuse(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-store"}
        if _is_form(request):
            if _same_site(request) and hmac.compare_digest(await _given_key(request), self._key):
                return self._signed_in(request)
            return HTMLResponse(_FORM.format("This is not the key."), 401, headers)
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_FORM.format(""), 401, headers)
        return JSONResponse({"detail": "the header X-API-KEY is missing or wrong"}, 401, headers)

    def _signed_in(self, request: Request) -> Response:
        response = RedirectResponse("?", 303, {"Cache-Control": "no-store"})
        response.set_cookie(
            _COOKIE,
            self._token.decode(),
            max_age=_MONTH,
            httponly=True,
            secure=request.url.scheme == "https",
            samesite="lax",
        )
        return response


class _Brake:
    """Lets an address that sends wrong keys wait, twice as long each time, and never with many at once."""

    def __init__(self) -> None:
        self._wrong: dict[str, tuple[int, float]] = {}
        self._waiting: Counter[str] = Counter()

    def full(self, address: str) -> bool:
        """Whether so many answers to wrong keys wait that no further key is looked at."""
        return self._waiting[address] >= _AT_ONCE

    async def slow(self, address: str) -> None:
        count, last = self._wrong.pop(address, (0, 0.0))
        count = count + 1 if time.monotonic() - last < _FORGET else 1
        self._wrong[address] = count, time.monotonic()
        if len(self._wrong) > _ADDRESSES:
            self._wrong.pop(next(iter(self._wrong)))  # the one whose latest is the longest ago
        if count <= _FREE:
            return
        self._waiting[address] += 1
        try:
            await asyncio.sleep(min(0.1 * 2 ** min(count - _FREE, 10), _LONGEST))
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]


class BodyLimit:
    """ASGI middleware for bodies that are too large, announced or not, and for those that come too slowly.

    More than `limit` bytes are answered with 413. A body has half a minute, and a second more for each 20 kB
    that have come: then the answer is 408.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = Request(scope).headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            return await self._too_large.response(scope, receive, send)
        taken, begun, more, start = 0, False, True, time.monotonic()

        async def counted() -> Message:
            nonlocal taken, more
            if not more:  # what comes now is the client's leaving
                return await receive()
            left = start + _BODY_SECONDS + taken / _BODY_PACE - time.monotonic()
            try:
                with anyio.fail_after(left):
                    message = await receive()
            except TimeoutError as error:
                raise _Refusal(408, f"the request's body came too slowly: {taken} bytes so far") from error
            more = message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise self._too_large
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _Refusal as refusal:
            if begun:
                raise
            await refusal.response(scope, receive, send)

    @property
    def _too_large(self) -> "_Refusal":
        error = f"the request has more than {self._limit} bytes: send fewer or smaller files"
        return _Refusal(413, error, limit=self._limit)


class _Refusal(Exception):
    def __init__(self, status: int, error: str, **more: object) -> None:
        super().__init__(error)
        self.response = JSONResponse({"error": error, **more}, status, {"Connection": "close"})


class Needed:
    """ASGI middleware that answers 404 to all of Gradio's routes but those in _NEEDED, spelled as there.

    Among the others are some that fetch, run or keep for ever what a stranger likes.

    ours   tells whether a path is one of our own routes'
    calls  the endpoints for programs
    """

    def __init__(self, app: ASGIApp, ours: Callable[[Scope], bool], calls: Container[str]) -> None:
        self.app, self._ours, self._calls = app, ours, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._ours(scope):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        for pattern, query in _NEEDED:
            if pattern.fullmatch(path) and self._named(path):
                scope = scope if query is None else {**scope, "query_string": query}
                try:
                    return await self.app(scope, receive, _mildly(send) if "/run/" in path else send)
                except RuntimeError as error:
                    if isinstance(error.__cause__, HTTPException):
                        return None  # of a stream that was begun, and has told of it
                    raise
        await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)

    def _named(self, path: str) -> bool:
        """Whether a call is of an endpoint that is there: Gradio takes any other for its own fault."""
        call = re.match(r"/gradio_api/call/(?:v2/)?([^/]+)", path)
        return not call or call[1] in self._calls


def _mildly(send: Send) -> Send:
    """Gradio says 500 to a call with values that its function cannot take."""

    async def said(message: Message) -> None:
        if message.get("status") == 500:
            message = {**message, "status": 422}
        await send(message)

    return said


async def fetch_nothing(*_: object, **__: object) -> NoReturn:
    """In place of Gradio's function that downloads an address which was given as an input."""
    raise gr.Error("addresses are not fetched: upload the file", print_exception=False)


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return request.method == "POST" and kind.startswith("application/x-www-form-urlencoded")


def _same_site(request: Request) -> bool:
    """Whether a request is a program's, or was made by one of our own pages.

    No script can set Sec-Fetch-Site; browsers send it over HTTPS and to this machine. Elsewhere the
    Origin must be the Host.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin is None:
        return True
    try:
        return bool(netloc := urlsplit(origin).netloc) and netloc == request.headers.get("host")
    except ValueError:
        return False


async def _given_key(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            return b""
    return parse_qs(body.decode("latin-1")).get("key", [""])[0].strip().encode()
