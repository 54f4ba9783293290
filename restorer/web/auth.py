"""API key authentication: a header for programs, a signed cookie for browsers."""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import Counter
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .middleware import same_site
from .refusal import Refusal

_COOKIE = "restorer_session"
_COOKIE_SECONDS = 30 * 24 * 3600
_STARTUP_PATH = "/gradio_api/startup-events"  # Gradio requests it from itself while it starts
_PROBES = ("/health", "/ready")
_MIN_KEY_LENGTH = 16  # characters; as many guesses are possible as the network carries
_FREE_ATTEMPTS = 5  # wrong keys of an address that are answered without delay
_MAX_DELAYED = 10  # delayed answers per address at a time
_LONGEST = 5.0  # seconds of delay
_FORGET_SECONDS = 600
_MAX_ADDRESSES = 10_000
_MAX_FORM_BYTES = 4096
_SIGN_IN_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Neural Image Restore</title>
<style>body{{font:16px system-ui;display:grid;place-items:center;min-height:90vh;color-scheme:light dark}}
form{{display:grid;gap:.8rem;width:18rem}}input,button{{font:inherit;padding:.5rem}}</style>
<form method="post"><h1>Neural Image Restore</h1><label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button><p role="alert">{}</p>
<p id="framed" hidden>If nothing happens, your browser blocks cookies of pages embedded in another site:
<a href="" target="_blank">open it in a tab</a>.</p></form>
<script>document.getElementById("framed").hidden = self === top</script></html>"""


class ApiKeyMiddleware:
    """ASGI middleware that answers requests without the API key with 401.

    Programs send the key in X-API-KEY or as a bearer token. A browser gets a sign-in form and, for the right
    key, a cookie. The cookie is a keyed hash, so the server stores no sessions and users stay signed in
    across restarts. Probes without a key learn whether the server is healthy and ready, and nothing else.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self._key, self._throttle = app, key.encode(), _Throttle()
        if len(key) < _MIN_KEY_LENGTH:
            logging.getLogger(__name__).warning(
                "API_KEY has %d characters and may be guessed; use at least %d", len(key), _MIN_KEY_LENGTH
            )
        self._token = hmac.new(self._key, b"browser session", hashlib.sha256).hexdigest().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":  # the app has none
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == _STARTUP_PATH or self._has_session(request) or self._has_key(request):
            return await self.app(scope, receive, send)
        guess = _sent_key(request) is not None or _COOKIE in request.headers.get("cookie", "")
        if path in _PROBES and not guess:
            return await self.app(scope, receive, _without_details(send))
        response = await self._refuse(request)
        if response.status_code == 401 and (guess or _is_form(request)):
            address = request.client.host if request.client else ""
            if self._throttle.is_full(address):
                refusal = Refusal(429, "too many wrong API keys; wait", headers={"Retry-After": "5"})
                response = refusal.response(scope)
            else:
                await self._throttle.delay(address)
        return await response(scope, receive, send)

    def _has_key(self, request: Request) -> bool:
        return hmac.compare_digest(_sent_key(request) or b"", self._key)

    def _has_session(self, request: Request) -> bool:
        navigates = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
        if not same_site(request) and not navigates:  # the other site cannot read what it links to or frames
            return False
        cookie = request.cookies.get(_COOKIE, "")
        return hmac.compare_digest(cookie.encode("latin-1", "replace"), self._token)

    async def _refuse(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "WWW-Authenticate": "Bearer"}
        if _is_form(request):
            if same_site(request) and hmac.compare_digest(await _submitted_key(request), self._key):
                return self._sign_in(request)
            return HTMLResponse(_SIGN_IN_PAGE.format("Wrong API key."), 401, headers)
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_SIGN_IN_PAGE.format(""), 401, headers)
        error = "missing or wrong API key; send it in the header X-API-KEY"
        return Refusal(401, error, headers=headers).response(request.scope)

    def _sign_in(self, request: Request) -> Response:
        """Set the cookie, over TLS also for a frame in another site, and for each such site alone."""
        tls = request.url.scheme == "https"
        cookie = [
            f"{_COOKIE}={self._token.decode()}",
            f"Path={request.scope.get('root_path') or '/'}",
            f"Max-Age={_COOKIE_SECONDS}",
            "HttpOnly",
            "SameSite=None; Secure; Partitioned" if tls else "SameSite=Lax",
        ]
        headers = {"Cache-Control": "no-store", "Set-Cookie": "; ".join(cookie)}
        return RedirectResponse("?", 303, headers)


class _Throttle:
    """Delay answers to an address that sends wrong keys, twice as long each time, few at a time."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}  # count and time of the last, oldest first
        self._delayed: Counter[str] = Counter()

    def is_full(self, address: str) -> bool:
        """Return whether so many answers are delayed that further wrong keys are refused at once."""
        return self._delayed[address] >= _MAX_DELAYED

    async def delay(self, address: str) -> None:
        count, last = self._failures.pop(address, (0, 0.0))
        count = count + 1 if time.monotonic() - last < _FORGET_SECONDS else 1
        self._failures[address] = count, time.monotonic()
        if len(self._failures) > _MAX_ADDRESSES:
            self._failures.pop(next(iter(self._failures)))
        if count <= _FREE_ATTEMPTS:
            return
        self._delayed[address] += 1
        try:
            await asyncio.sleep(min(0.1 * 2 ** min(count - _FREE_ATTEMPTS, 10), _LONGEST))
        finally:
            self._delayed[address] -= 1
            if not self._delayed[address]:
                del self._delayed[address]


def _sent_key(request: Request) -> bytes | None:
    """Return the key that a program sent, for an EventSource, which cannot set headers, in the query."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    key = request.headers.get("x-api-key", token.strip() if scheme.lower() == "bearer" else None)
    if key is not None:
        return key.encode("latin-1")
    token = request.query_params.get("access_token") if request.url.path.endswith("/events") else None
    return None if token is None else token.encode("utf-8", "replace")


def _without_details(send: Send) -> Send:
    """Replace an answer's body by what its status says."""

    async def replace(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            text = b'{"status":"ok"}' if status == 200 else b'{"error":"unavailable"}'
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text})

    return replace


def _is_form(request: Request) -> bool:
    content_type = request.headers.get("content-type", "")
    return request.method == "POST" and content_type.startswith("application/x-www-form-urlencoded")


async def _submitted_key(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return b""
    return parse_qs(body.decode("latin-1")).get("key", [""])[0].strip().encode()
