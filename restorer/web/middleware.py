"""ASGI middleware: same-origin requests, limits on bodies and queue, and the allowed Gradio routes."""

import logging
import re
import time
from collections.abc import Callable, Container, Sequence
from typing import NoReturn
from urllib.parse import urlsplit

import anyio
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..errors import QueueFull
from .gpu_queue import GpuQueue
from .refusal import RETRY_AFTER, Refusal, refuse_with

_MIN_PROGRESS = 1000  # bytes of a body in each timeout, or single bytes could hold a connection indefinitely
# Paths that are served; below one of them as ROOT_PATH, requests would be ambiguous
SERVED = re.compile(
    r"/(assets|config|docs|enhance|favicon\.ico|gradio_api|health|jobs|look|metrics|models|openapi\.json"
    r"|processed|quote|ready|robots\.txt|static|status|theme\.css)(/|$)"
)
_CLOSE = {"Connection": "close"}  # the rest of the body is not read
_HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d{1,5})?", re.ASCII)
# Gradio and its clients read these although any client can set them; only the scheme and Host count
_UNTRUSTED_HEADERS = (
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-gradio-server",
)
# The Gradio routes that the page and gradio_client need, each with the query that replaces the request's
# own (None: unchanged). Gradio fails on an unknown page or deep link, and /info without a page caches the
# URL of the first request and returns it to everybody
_ALLOWED_ROUTES: tuple[tuple[re.Pattern[str], bytes | None], ...] = (
    (re.compile(r"/(config)?"), b""),
    (re.compile(r"/gradio_api/info"), b"page="),
    (re.compile(r"/(theme\.css|robots\.txt|favicon\.ico|(static|assets)/.+)"), None),
    (re.compile(r"/gradio_api/(startup-events|app_id|theme\.css|upload|upload_progress|cancel|reset)"), None),
    (re.compile(r"/gradio_api/(queue/(join|data)|heartbeat/[\w-]+|call/(v2/)?\w+(/[\w-]+)?)"), None),
    (re.compile(r"/gradio_api/run/predict"), None),
    (re.compile(r"/gradio_api/file=(?!\s*[a-z]{2,}\s*:).+", re.DOTALL | re.IGNORECASE), None),
)


class SameOriginMiddleware:
    """ASGI middleware that replaces Gradio's CORS middleware and refuses cross-site requests.

    Pages of `allowed_origins` may send any request and read the answers, but never use the session of a user.

    `root_path` becomes part of every request's path, whether or not a proxy has removed it.
    X-Forwarded-* headers are applied if they come from one of `proxies`, then removed with all other
    untrusted headers: the app sees one scheme and one Host. Pages of other sites cannot read any answer, as
    theirs have no CORS headers, and get 403 for anything but GET and HEAD. Programs send neither Origin nor
    Sec-Fetch-Site.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        proxies: str,
        root_path: str = "",
        allowed_origins: Sequence[str] = (),
        **_gradio_options: object,
    ) -> None:
        self.app, self._root_path, self._allowed_origins = app, root_path, allowed_origins
        self._cors = CORSMiddleware(
            self._check_origin,
            allow_origins=allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("Content-Disposition", "Location", "Retry-After"),
        )
        self._proxy = ProxyHeadersMiddleware(self._apply_cors, proxies)  # type: ignore[arg-type]
        self._warned = False  # warn once, or clients could flood the log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if root := self._root_path:
            path = scope["path"] if f"{scope['path']}/".startswith(f"{root}/") else root + scope["path"]
            scope = {**scope, "path": path, "root_path": root, "app_root_path": root}
        headers = MutableHeaders(scope=scope)
        client = scope.get("client")
        host = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        trusted = bool(client) and client[0] in self._proxy.trusted_hosts
        if host and trusted:
            headers["host"] = host
        if client and not trusted and not self._warned and "x-forwarded-proto" in headers:
            self._warned = True
            logging.getLogger(__name__).warning(
                "ignoring X-Forwarded headers from %s; if it is your proxy, add it to FORWARDED_ALLOW_IPS",
                client[0],
            )
        await self._proxy(scope, receive, send)  # type: ignore[arg-type]

    async def _apply_cors(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._cors if self._is_allowed(scope) else self._check_origin
        await app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        return MutableHeaders(scope=scope).get("origin") in self._allowed_origins

    async def _check_origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        for name in _UNTRUSTED_HEADERS:
            del headers[name]
        read_only = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if not _HOST.fullmatch(headers.get("host", "")):
            refusal = Refusal(400, "invalid Host header")
        elif read_only or same_site(Request(scope)) or self._is_allowed(scope):
            return await self.app(scope, receive, send)
        else:
            refusal = Refusal(403, "cross-site requests are not allowed")
        await refusal.response(scope)(scope, receive, send)


class BodyLimitMiddleware:
    """ASGI middleware that refuses request bodies that are too large or do not advance.

    More than `limit` bytes, announced or not, are answered with 413. A body of which less than 1 kB arrives
    in `timeout` seconds is answered with 408; one that advances may take any time.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self.app, self._limit, self._timeout = app, limit, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = Request(scope).headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            return await self._too_large.response(scope)(scope, receive, send)
        received, more = 0, True
        advanced_to, advanced_at = 0, time.monotonic()
        response_started = False

        async def limited_receive() -> Message:
            nonlocal received, more, advanced_to, advanced_at
            if not more:  # what follows the body is the client's disconnect
                return await receive()
            try:
                with anyio.fail_after(advanced_at + self._timeout - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                stopped = f"the upload stopped for {self._timeout:g} seconds after {received} bytes"
                advice = "check the connection and send it again"
                raise Refusal(408, f"{stopped}; {advice}", headers=_CLOSE) from error
            more = message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large
            if received - advanced_to >= _MIN_PROGRESS:
                advanced_to, advanced_at = received, time.monotonic()
            return message

        async def tracking_send(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self.app(scope, limited_receive, tracking_send)
        except Refusal as refusal:
            if response_started:
                raise
            await refusal.response(scope)(scope, receive, send)

    @property
    def _too_large(self) -> Refusal:
        error = f"the request is larger than {self._limit} bytes; send fewer or smaller files"
        return Refusal(413, error, headers=_CLOSE, limit=self._limit)


class QueueFullMiddleware:
    """ASGI middleware that refuses jobs while the queue is full, before reading the request.

    Which event a POST to /gradio_api/queue/join starts is in its body, a few hundred bytes without photos:
    GpuQueue refuses that, and Retry-After is added here.

    is_accepted  returns whether a job was accepted with this Idempotency-Key; such a request adds no job
    """

    def __init__(self, app: ASGIApp, queue: GpuQueue, is_accepted: Callable[[str], bool]) -> None:
        self.app, self._queue, self._is_accepted = app, queue, is_accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        key = Request(scope).headers.get("idempotency-key", "")
        if scope["path"].endswith(("/enhance", "/enhance_batch")) and not self._is_accepted(key):
            try:
                with refuse_with(503, QueueFull, limit=self._queue.max_waiting):
                    self._queue.check()
            except Refusal as refusal:
                return await refusal.response(scope)(scope, receive, send)

        async def send_with_delay(message: Message) -> None:
            if message.get("status") == 503:
                MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_AFTER))
            await send(message)

        return await self.app(scope, receive, send_with_delay)


class RouteAllowlist:
    """ASGI middleware that answers 404 to Gradio routes outside _ALLOWED_ROUTES.

    Others let a client fetch URLs, run code or store data indefinitely.

    is_own_route  returns whether a route of this project matches the scope
    endpoints     API names that may be called
    """

    def __init__(
        self, app: ASGIApp, is_own_route: Callable[[Scope], bool], endpoints: Container[str]
    ) -> None:
        self.app, self._is_own_route, self._endpoints = app, is_own_route, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_own_route(scope):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        for pattern, query in _ALLOWED_ROUTES:
            if pattern.fullmatch(path) and self._endpoint_exists(path):
                scope = scope if query is None else {**scope, "query_string": query}
                try:
                    return await self.app(scope, receive, _as_client_error(send) if "/run/" in path else send)
                except RuntimeError as error:
                    if isinstance(error.__cause__, HTTPException):
                        return None  # raised after the stream started, which has reported it
                    raise
        await Refusal(404, "not found").response(scope)(scope, receive, send)

    def _endpoint_exists(self, path: str) -> bool:
        """Return False for a call of an unknown endpoint, which Gradio would answer with 500."""
        call = re.match(r"/gradio_api/call/(?:v2/)?([^/]+)", path)
        return not call or call[1] in self._endpoints


def _as_client_error(send: Send) -> Send:
    """Replace the 500 that Gradio answers to invalid arguments by 422."""

    async def replace_status(message: Message) -> None:
        if message.get("status") == 500:
            message = {**message, "status": 422}
        await send(message)

    return replace_status


async def refuse_download(*_: object, **__: object) -> NoReturn:
    """Raise gr.Error; replaces the Gradio function that downloads an input passed as a URL."""
    raise gr.Error("URLs are not downloaded; upload the file", print_exception=False)


def same_site(request: Request) -> bool:
    """Return whether a request comes from a program or from a page of this server.

    Browsers send Sec-Fetch-Site, which no script can set, over HTTPS and to localhost. Elsewhere the Origin
    must match the Host.
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
