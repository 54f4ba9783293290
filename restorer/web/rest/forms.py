"""Read the forms of requests, and refuse invalid files and options before any work starts."""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import fields
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fastapi.responses import JSONResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import ImageTooLarge, InvalidOption, QueueFull, RestoreError, UnknownModel
from ...images import sandbox
from ...options import Options
from ..gpu_queue import GpuQueue
from ..service import Service

FORM_BYTES = 64 * 1024  # size of a form without its files
_RETRY_AFTER = 30  # seconds
_FILE_FIELDS = ("files", "files[]", "file")
_EXTENDED_NAME = re.compile(rb"filename\*\s*=\s*utf-8'[^']*'([^\s;]+)", re.IGNORECASE)
Form = tuple[list[tuple[str, Path]], dict[str, object]]  # files as (name, path), and options by name
_OPTION_TYPES = {field.name: type(field.default) for field in fields(Options)}


class _MultiPartParser(MultiPartParser):
    """A parser for which every part of a file field is a file, even one that has no file name."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name", b"").decode("latin-1") in _FILE_FIELDS and b"filename" not in options:
            extended = _EXTENDED_NAME.search(part.content_disposition or b"")
            name = unquote_to_bytes(extended[1]) if extended else b"photo"
            part.content_disposition = b'form-data; name=files; filename="%s"' % re.sub(rb'["\\]', b"_", name)
        super().on_headers_finished()


class Refusal(Exception):
    """An error response: a status, and a body with the reason and, where there is one, the limit."""

    def __init__(self, status: int, error: str, **more: object) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(_RETRY_AFTER)} if self.status in (503, 507) else {}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


@contextmanager
def refuse_with(status: int, error_type: type[RestoreError], **limit: int) -> Iterator[None]:
    """Convert an error of that type to a Refusal with this status and limit."""
    try:
        yield
    except error_type as error:
        raise Refusal(status, str(error), **limit) from error


class QueueFullMiddleware:
    """ASGI middleware that refuses jobs while the queue is full, before reading the request.

    Which event a POST to /gradio_api/queue/join starts is in its body, a few hundred bytes without photos:
    GpuQueue refuses that, and Retry-After is added here.
    """

    def __init__(self, app: ASGIApp, queue: GpuQueue) -> None:
        self.app, self._queue = app, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if scope["path"].endswith(("/enhance", "/enhance_batch")):
            try:
                self._queue.check()
            except QueueFull as error:
                refusal = Refusal(503, str(error), limit=self._queue.max_waiting)
                return await refusal.response()(scope, receive, send)

        async def send_with_delay(message: Message) -> None:
            if message.get("status") == 503:
                MutableHeaders(scope=message).setdefault("Retry-After", str(_RETRY_AFTER))
            await send(message)

        return await self.app(scope, receive, send_with_delay)


@asynccontextmanager
async def read(
    request: Request,
    folder: Path,
    *,
    max_files: int,
    max_megabytes: int,
    admission: AbstractAsyncContextManager[None],
) -> AsyncIterator[Form]:
    """Read a form; its files stay in a temporary folder below `folder` until the context exits.

    max_megabytes  of one file
    admission      entered once the form is complete, before it is examined; its errors refuse the form

    Raises Refusal.
    """
    max_bytes = max_megabytes * 2**20
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_files * max_bytes + FORM_BYTES:
        limit = max_files * max_bytes
        raise Refusal(
            413, f"the request has {length} bytes, the limit is {limit}; send smaller files", limit=limit
        )
    content_type = request.headers.get("content-type", "")
    try:
        if not content_type.lower().startswith("multipart/form-data"):
            async for _ in request.stream():  # a client that still sends may not read the answer
                pass
            raise Refusal(
                422, f"the body is {content_type or 'not a form'}; send multipart/form-data, field files"
            )
        form = await _MultiPartParser(
            request.headers,
            request.stream(),
            max_files=max_files,
            max_fields=len(_OPTION_TYPES),
            max_part_size=FORM_BYTES,
        ).parse()
    except MultiPartException as error:
        if "Too many files" in str(error):
            raise Refusal(422, f"too many files; send at most {max_files}", limit=max_files) from error
        raise Refusal(422, f"invalid form: {error}") from error
    except ClientDisconnect as error:
        raise Refusal(400, "incomplete upload") from error
    try:
        async with admission:
            with tempfile.TemporaryDirectory(dir=folder, prefix="tmp") as temporary:
                files, sent = [], request.query_params.multi_items()
                for field, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        path = Path(temporary) / str(len(files))
                        files.append(await _save_upload(field, value, path, max_bytes))
                    else:
                        sent.append((field, value))
                options = _parse_options(sent)
                if not files:
                    raise Refusal(422, "no file; send one or more in the field files")
                yield files, options
    finally:
        await form.close()


async def _save_upload(field: str, upload: UploadFile, path: Path, max_bytes: int) -> tuple[str, Path]:
    # lone surrogates cannot be encoded in an answer, and control characters may reverse the text
    name = (_decoded(upload.filename or "") or "photo").encode("utf-8", "replace").decode().replace("\\", "/")
    name = "".join(char if char.isprintable() else "_" for char in name.rpartition("/")[2][-255:])
    if field not in _FILE_FIELDS:
        raise Refusal(422, f"unknown file field {field!r}; use files", allowed=["files"])
    if (upload.size or 0) > max_bytes:
        raise Refusal(413, f"{name} has {upload.size} bytes; the limit is {max_bytes}", limit=max_bytes)
    with path.open("wb") as out:
        await asyncio.to_thread(shutil.copyfileobj, upload.file, out)
    return name, path


def _decoded(name: str) -> str:
    """Decode the encoded words of RFC 2047 in a file name, as .NET and mail libraries send them."""
    try:
        return str(make_header(decode_header(name))) if "=?" in name else name
    except (HeaderParseError, LookupError, ValueError):
        return name


def validate(service: Service, files: list[tuple[str, Path]], options: dict[str, object]) -> None:
    """Raise Refusal for invalid options and for photos that are too large, before or after restoration."""
    limits = service.settings.limits
    try:
        service.restorer.model(service.options(options))
    except (UnknownModel, InvalidOption) as error:
        raise Refusal(422, service.user_message(error)) from error
    for name, path in files:
        try:
            size = sandbox.size(path.read_bytes(), max_pixels=limits.input_pixels)
        except ImageTooLarge as error:
            raise Refusal(422, f"{name}: {error}", limit=limits.input_pixels) from error
        except RestoreError:
            continue  # one bad file of a job is reported in its status
        try:
            service.restorer.enlarged(*size, service.options(options, size).outscale)
        except ImageTooLarge as error:
            raise Refusal(422, f"{name}: {error}", limit=limits.output_pixels) from error
        except InvalidOption as error:
            raise Refusal(422, f"{name}: {error}") from error


def _parse_options(fields: list[tuple[str, str]]) -> dict[str, object]:
    """Convert the fields of a query and a form. Raises Refusal."""
    options: dict[str, object] = {}
    for name, value in fields:
        if name in options:
            raise Refusal(422, f"{name} is sent twice; send each option once, in the form or the query")
        options[name] = _parse_option(name, value)
    return options


def _parse_option(name: str, value: str) -> object:
    """Convert an option to its type. Raises Refusal."""
    option_type = _OPTION_TYPES.get(name)
    if option_type is None:
        raise Refusal(422, f"unknown option {name!r}", allowed=sorted(_OPTION_TYPES))
    text = value.strip()
    if name == "face_enhance" or option_type is bool:
        boolean = {"true": True, "false": False}.get(text.lower())
        if boolean is None and option_type is bool:
            raise Refusal(422, f"{name} is {text!r}; use true or false", allowed=["true", "false"])
        return text if boolean is None else boolean
    try:
        return option_type(text)
    except ValueError as error:
        description = {float: "a number", int: "a whole number"}[option_type]
        raise Refusal(422, f"{name} is {text!r}; it must be {description}") from error
