"""Read the forms of requests, and refuse invalid files and options before any work starts."""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email.errors import MessageError
from email.header import decode_header, make_header
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ...errors import ImageTooLarge, InvalidOption, RestoreError, UnknownModel
from ...images import sandbox
from ...repair.pipeline import check_size
from ..refusal import Refusal, invalid_values, refuse_with
from ..service import Service

FORM_BYTES = 64 * 1024  # size of a form without its files
_FILE_FIELDS, _MASK = ("files", "files[]", "file"), "mask"
_EXTENDED_NAME = re.compile(rb"filename\*\s*=\s*utf-8'[^']*'([^\s;]+)", re.IGNORECASE)
Form = tuple[list[tuple[str, Path]], dict[str, object], Path | None]  # files (name, path), options, mask


class _MultiPartParser(MultiPartParser):
    """A parser for which every part of a file field is a file, even one that has no file name."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        part.content_disposition = _with_file_name(part.content_disposition or b"")
        super().on_headers_finished()


def _with_file_name(disposition: bytes) -> bytes:
    _, options = parse_options_header(disposition)
    field = options.get(b"name", b"").decode("latin-1")
    if field not in (*_FILE_FIELDS, _MASK) or b"filename" in options:
        return disposition
    extended = _EXTENDED_NAME.search(disposition)
    name = unquote_to_bytes(extended[1]) if extended else b"photo"
    field = _MASK if field == _MASK else _FILE_FIELDS[0]
    return b'form-data; name=%s; filename="%s"' % (field.encode(), re.sub(rb'["\\]', b"_", name))


@asynccontextmanager
async def read(
    request: Request,
    service: Service,
    options_model: type[BaseModel],
    *,
    max_files: int,
    admission: AbstractAsyncContextManager[None],
    mask: bool = False,
) -> AsyncIterator[Form]:
    """Read a form; its files stay in a temporary folder until the context exits.

    options_model  a model without fields accepts no options; others are checked against the photos' size
    admission      entered once the form is complete, before it is examined; its errors refuse the form
    mask           whether a mask may be sent with one photo

    Raises Refusal.
    """
    max_bytes = service.settings.max_file_size_mb * 2**20
    most = max(max_files, 2) if mask else max_files
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most * max_bytes + FORM_BYTES:
        limit = most * max_bytes
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
            max_files=most,
            max_fields=len(options_model.model_fields) + 1,  # an unknown one is named
            max_part_size=FORM_BYTES,
        ).parse()
    except (MultiPartException, UnicodeError) as error:
        if "Too many files" in str(error):
            raise Refusal(422, f"too many files; send at most {max_files}", limit=max_files) from error
        raise Refusal(422, f"invalid form: {error}") from error
    except ClientDisconnect as error:
        raise Refusal(400, "incomplete upload") from error
    try:
        async with admission:
            with tempfile.TemporaryDirectory(dir=service.settings.jobs_folder, prefix="tmp") as temporary:
                files, sent, sent_mask = [], request.query_params.multi_items(), None
                for field, value in form.multi_items():
                    if isinstance(value, UploadFile) and mask and field == _MASK and not sent_mask:
                        sent_mask = await _save_mask(value, temporary, max_bytes)
                    elif isinstance(value, UploadFile):
                        files.append(await _save_upload(field, value, temporary, len(files), max_bytes))
                    else:
                        sent.append((field, value))
                options = _parse_options(options_model, sent)
                if not files:
                    raise Refusal(422, "no file; send one or more in the field files")
                if len(files) > max_files:
                    raise Refusal(422, f"too many files; send at most {max_files}", limit=max_files)
                if sent_mask and len(files) > 1:
                    raise Refusal(422, f"a mask is sent with {len(files)} photos; send it with one")
                if options_model.model_fields:
                    await asyncio.to_thread(validate, service, files, options, sent_mask)
                yield files, options, sent_mask
    finally:
        await form.close()


async def _save_mask(upload: UploadFile, folder: str, max_bytes: int) -> Path:
    if (upload.size or 0) > max_bytes:
        raise Refusal(413, f"the mask has {upload.size} bytes; the limit is {max_bytes}", limit=max_bytes)
    path = Path(folder) / _MASK
    with path.open("wb") as out:
        await asyncio.to_thread(shutil.copyfileobj, upload.file, out)
    return path


async def _save_upload(
    field: str, upload: UploadFile, folder: str, index: int, max_bytes: int
) -> tuple[str, Path]:
    # lone surrogates cannot be encoded in an answer, and control characters may reverse the text
    name = (_decoded(upload.filename or "") or "photo").encode("utf-8", "replace").decode().replace("\\", "/")
    name = "".join(char if char.isprintable() else "_" for char in name.rpartition("/")[2][-255:])
    if field not in _FILE_FIELDS:
        raise Refusal(422, f"unknown file field {field!r}; use files", allowed=["files"])
    if (upload.size or 0) > max_bytes:
        error = f"{name} has {upload.size} bytes; the limit is {max_bytes}"
        raise Refusal(413, error, limit=max_bytes, index=index, original_filename=name)
    path = Path(folder) / str(index)
    with path.open("wb") as out:
        await asyncio.to_thread(shutil.copyfileobj, upload.file, out)
    return name, path


def _decoded(name: str) -> str:
    """Decode the encoded words of RFC 2047 in a file name, as .NET and mail libraries send them."""
    try:
        return str(make_header(decode_header(name))) if "=?" in name else name
    except (MessageError, LookupError, ValueError):
        return name


def validate(
    service: Service, files: list[tuple[str, Path]], options: dict[str, object], mask: Path | None
) -> None:
    """Raise Refusal for invalid options, too large photos or results, and a mask that does not fit."""
    limits = service.settings.limits
    try:
        service.restorer.model(service.options(options))
    except (UnknownModel, InvalidOption) as error:
        raise Refusal(422, service.user_message(error)) from error
    for index, (name, path) in enumerate(files):
        file = {"index": index, "original_filename": name}
        try:
            with refuse_with(422, ImageTooLarge, limit=limits.input_pixels, **file):
                size = sandbox.size(path.read_bytes(), max_pixels=limits.input_pixels)
        except RestoreError:
            continue  # one bad file of a job is reported in its status
        with refuse_with(422, InvalidOption, **file):
            outscale = service.options(options, size).outscale
        with refuse_with(422, ImageTooLarge, limit=limits.output_pixels, **file):
            service.restorer.enlarged(*size, outscale)
        if mask:
            _check_mask(mask, size, limits.input_pixels)


def _check_mask(mask: Path, expected: sandbox.Size, max_pixels: int) -> None:
    try:
        size = sandbox.size(mask.read_bytes(), max_pixels=max_pixels)
    except RestoreError as error:
        raise Refusal(422, f"the mask: {error}") from error
    if sorted(size) != sorted(expected):  # before orientation is applied; the job compares them exactly
        with refuse_with(422, InvalidOption):
            check_size(size, expected)


def _parse_options(model: type[BaseModel], fields: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Convert the fields of a query and a form. Raises Refusal."""
    values: dict[str, str] = {}
    for name, value in fields:
        if name in values:
            raise Refusal(422, f"{name} is sent twice; send each option once, in the form or the query")
        if name not in model.model_fields:
            raise Refusal(422, f"unknown option {name!r}", allowed=sorted(model.model_fields))
        values[name] = value.strip()
    try:
        return model.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise Refusal(422, invalid_values(error.errors())) from error
