"""What comes in with a form: files and options, checked and refused before anything is worked on."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import fields
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import ImageTooLarge, InvalidOption, QueueFull, RestoreError, UnknownModel
from ...images import sandbox
from ...options import Options
from ..service import Service
from ..worker import Worker

FORM_BYTES = 64 * 1024  # bytes of a form beside its files
_RETRY = 30  # seconds after which asking again makes sense
Read = tuple[list[tuple[str, Path]], dict[str, object]]  # files, each with its name, and options
_OPTIONS = {field.name: type(field.default) for field in fields(Options)} | {"long_side": int}


class Refusal(Exception):
    """An answer that is not the one asked for: a status, and a body that says why and what the limit is."""

    def __init__(self, status: int, error: str, **more: object) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(_RETRY)} if self.status in (503, 507) else None
        return JSONResponse(self.body, self.status, headers)


@contextmanager
def refuse_with(status: int, kind: type[RestoreError], **limit: int) -> Iterator[None]:
    """What there is no room for is refused with that status, and with the limit if there is one."""
    try:
        yield
    except kind as error:
        raise Refusal(status, str(error), **limit) from error


class QueueFullMiddleware:
    """ASGI middleware that refuses a job before anything is read or done where the line is full: cheaply."""

    def __init__(self, app: ASGIApp, worker: Worker) -> None:
        self.app, self._workshop = app, worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/enhance"):
            try:
                self._workshop.check()
            except QueueFull as error:
                refusal = Refusal(503, str(error), limit=self._workshop.longest)
                return await refusal.response()(scope, receive, send)
        return await self.app(scope, receive, send)


@asynccontextmanager
async def read(
    request: Request, folder: Path, *, most: int, megabytes: int, admitted: AbstractAsyncContextManager[None]
) -> AsyncIterator[Read]:
    """The files of a form, below `folder` in one of their own for as long as this lasts, and its options.

    admitted  is entered once all has arrived, before it is looked into; what it raises refuses the form
    """
    largest = megabytes * 2**20
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most * largest + FORM_BYTES:
        raise Refusal(413, f"the request has {length} bytes: send smaller files", limit=most * largest)
    try:
        form = await request.form(max_files=most, max_fields=len(_OPTIONS), max_part_size=FORM_BYTES)
    except (HTTPException, MultiPartException) as error:
        why = getattr(error, "detail", str(error))
        if "Too many files" in str(why):
            raise Refusal(422, f"a request takes at most {most} files", limit=most) from error
        raise Refusal(422, f"the form cannot be read: {why}") from error
    except ClientDisconnect as error:
        raise Refusal(400, "the upload was not finished") from error
    try:
        async with admitted:
            with tempfile.TemporaryDirectory(dir=folder, prefix="tmp") as place:
                files, given = [], {}
                for field, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        files.append(await _copied(field, value, Path(place) / str(len(files)), largest))
                    else:
                        given[field] = _typed(field, value)
                if not files:
                    raise Refusal(422, "there is no file: send one or more in the field files")
                yield files, given
    finally:
        await form.close()


async def _copied(field: str, upload: UploadFile, path: Path, largest: int) -> tuple[str, Path]:
    # a name as it can be told again: lone surrogates of odd charsets cannot, nor what turns the text around
    name = (upload.filename or "photo").encode("utf-8", "replace").decode().replace("\\", "/")
    name = "".join(sign if sign.isprintable() else "_" for sign in name.rpartition("/")[2][-255:])
    if field not in ("files", "files[]", "file"):
        raise Refusal(422, f"files come in the field files, not {field!r}", allowed=["files"])
    if (upload.size or 0) > largest:
        raise Refusal(413, f"{name} has {upload.size} bytes; a file may have {largest}", limit=largest)
    with path.open("wb") as out:
        await asyncio.to_thread(shutil.copyfileobj, upload.file, out)
    return name, path


def validate(service: Service, files: list[tuple[str, Path]], given: dict[str, object]) -> None:
    """Refuse what is seen to be wrong or too large before any of it is worked on."""
    limits = service.settings.limits
    try:
        service.restorer.model(service.options(given, None))
    except (UnknownModel, InvalidOption) as error:
        raise Refusal(422, service.user_message(error)) from error
    for name, path in files:
        try:
            size = sandbox.size(path.read_bytes(), max_pixels=limits.input_pixels)
        except ImageTooLarge as error:
            raise Refusal(422, f"{name}: {error}", limit=limits.input_pixels) from error
        except RestoreError:
            continue  # one bad file of a job is told in its status
        try:
            service.restorer.enlarged(*size, service.options(given, size).outscale)
        except ImageTooLarge as error:
            raise Refusal(422, f"{name}: {error}", limit=limits.output_pixels) from error
        except InvalidOption as error:
            raise Refusal(422, f"{name}: {error}") from error


def _typed(name: str, value: str) -> object:
    "An option of a form as what it is. Raises Refusal."
    kind = _OPTIONS.get(name)
    if kind is None:
        raise Refusal(422, f"there is no option {name!r}", allowed=sorted(_OPTIONS))
    text = value.strip()
    if name == "face_enhance" or kind is bool:
        truth = {"true": True, "false": False}.get(text.lower())
        if truth is None and kind is bool:
            raise Refusal(422, f"{name} is {text!r}", allowed=["true", "false"])
        return text if truth is None else truth
    try:
        return kind(text)
    except ValueError as error:
        words = {float: "a number", int: "a whole number"}[kind]
        raise Refusal(422, f"{name} is {text!r}; it must be {words}") from error
