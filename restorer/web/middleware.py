"""ASGI middleware: same-origin requests, a limit on bodies, and the allowed Gradio routes."""

import logging
import re
import time
from collections.abc import Callable, Container
from typing import NoReturn
from urllib.parse import urlsplit

import anyio
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_BODY_SECONDS, _BODY_PACE = 30, 20_000  # that a body has, and bytes that earn it a second more
_HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d{1,5})?", re.ASCII)
# What Gradio and its clients read although any client may write it: the scheme and the Host are what counts
_UNTRUSTED_HEADERS = (
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-gradio-server",
)
# Of Gradio's routes what the page and gradio_client need, each with the query it is given in place of the
# request's own: a page or a link that is not there is an error of Gradio's, and /info without a page is told
# to everybody with the address that the first who asked came by
_ALLOWED_ROUTES: tuple[tuple[re.Pattern[str], bytes | None], ...] = (
    (re.compile(r"/(config)?"), b""),
    (re.compile(r"/gradio_api/info"), b"page="),
    (re.compile(r"/(theme\.css|robots\.txt|favicon\.ico|(static|assets)/.+)"), None),
    (re.compile(r"/gradio_api/(startup-events|theme\.css|upload|upload_progress|cancel|reset)"), None),
    (re.compile(r"/gradio_api/(queue/(join|data)|heartbeat/[\w-]+|call/(v2/)?\w+(/[\w-]+)?)"), None),
    (re.compile(r"/gradio_api/run/predict"), None),
    (re.compile(r"/gradio_api/file=(?!\s*[a-z]{2,}\s*:).+", re.DOTALL | re.IGNORECASE), None),
)


class SameOriginMiddleware:
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
        for name in _UNTRUSTED_HEADERS:
            del headers[name]
        reads = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if not _HOST.fullmatch(headers.get("host", "")):
            refusal = JSONResponse({"detail": "the header Host is no name and no address"}, 400)
        elif reads or same_site(Request(scope)):
            return await self.app(scope, receive, send)
        else:
            refusal = JSONResponse({"detail": "this is not for pages of other sites"}, 403)
        await refusal(scope, receive, send)


class BodyLimitMiddleware:
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


class RouteAllowlist:
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
        for pattern, query in _ALLOWED_ROUTES:
            if pattern.fullmatch(path) and self._named(path):
                scope = scope if query is None else {**scope, "query_string": query}
                try:
                    return await self.app(scope, receive, _as_client_error(send) if "/run/" in path else send)
                except RuntimeError as error:
                    if isinstance(error.__cause__, HTTPException):
                        return None  # of a stream that was begun, and has told of it
                    raise
        await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)

    def _named(self, path: str) -> bool:
        """Whether a call is of an endpoint that is there: Gradio takes any other for its own fault."""
        call = re.match(r"/gradio_api/call/(?:v2/)?([^/]+)", path)
        return not call or call[1] in self._calls


def _as_client_error(send: Send) -> Send:
    """Gradio says 500 to a call with values that its function cannot take."""

    async def said(message: Message) -> None:
        if message.get("status") == 500:
            message = {**message, "status": 422}
        await send(message)

    return said


async def refuse_download(*_: object, **__: object) -> NoReturn:
    """In place of Gradio's function that downloads an address which was given as an input."""
    raise gr.Error("addresses are not fetched: upload the file", print_exception=False)


def same_site(request: Request) -> bool:
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
