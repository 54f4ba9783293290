"""API key authentication: a header for programs, a signed cookie for browsers."""

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .middleware import same_site

_COOKIE = "restorer_session"
_MONTH = 30 * 24 * 3600
# Gradio asks itself for the first while it starts; both tell no more than that the server is there
_OPEN = ("/gradio_api/startup-events", "/health")
_FREE, _AT_ONCE, _LONGEST = 5, 10, 5.0  # wrong keys without a wait, those waiting, and seconds of a wait
_FORGET, _ADDRESSES = 600, 10_000  # seconds until wrong keys are forgotten, and of how many they are known
_LARGEST_FORM = 4096
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Neural Image Restore</title>
<style>body{{font:16px system-ui;display:grid;place-items:center;min-height:90vh;color-scheme:light dark}}
form{{display:grid;gap:.8rem;width:18rem}}input,button{{font:inherit;padding:.5rem}}</style>
<form method="post"><h1>Neural Image Restore</h1><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button><p role="alert">{}</p></form></html>"""


class ApiKeyMiddleware:
    """ASGI middleware that answers 401 to whoever brings no key.

    Programs send X-API-KEY. A browser gets a form; the right key is answered with a cookie that is a
    keyed hash, so that the server keeps no sessions and a restart signs nobody out.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key, self._brake = app, key.encode(), _Throttle()
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
        if not same_site(request):
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
            if same_site(request) and hmac.compare_digest(await _given_key(request), self._key):
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


class _Throttle:
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


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return request.method == "POST" and kind.startswith("application/x-www-form-urlencoded")


async def _given_key(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            return b""
    return parse_qs(body.decode("latin-1")).get("key", [""])[0].strip().encode()
