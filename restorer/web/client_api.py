"""What gradio_client calls: /enhance, /enhance_batch, /models and /quote, with the page's own defaults."""

import asyncio
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio import FileData, events

from ..options import FORMATS
from ..result import Result
from . import previews
from .service import Service, receipt
from .worker import Step

NAMES = ("enhance", "enhance_batch", "quote", "models")
_KINDS: dict[str, Any] = {
    "face_enhance": bool | Literal["auto", "on", "off"],
    "outscale": float,
    "long_side": int,
    "model": str,
    "denoise": float,
    "face_model": str,
    "face_strength": float,
    "format": Literal[FORMATS],
    "quality": int,
    "keep_metadata": bool,
    "remove_gps": bool,
}
_FORETOLD = ("face_enhance", "outscale", "long_side", "model", "denoise", "format")
_ENHANCE = """Restore one photo. Gives the full-size file, previews of before and after in one size (JPEG,
at most 2048 pixels a side), and the receipt: software, model, its sha256, options, pixels, seconds, faces,
warnings. face_enhance is true, false or "auto"; long_side, in pixels, stands for outscale where not 0."""
_BATCH = """Restore photos one after the other; one that cannot be restored does not stop the others. Gives
the full-size files of those that could be and, for every photo in the order given, its receipt or
{"error": why not}. The options are those of /enhance."""
_QUOTE = "What restoring a photo will take: size, model, tiles, seconds, cost; null for what is not known."
_MODELS = "Every model: name, kind, what for, licence, bytes, and whether its file is here."


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the Blocks that are being built."""
    own = {"long_side": 0, **vars(service.restorer.options)}
    waits: dict[str, Any] = {"concurrency_limit": None}  # in the worker's line

    def add(
        run: Callable, name: str, files: dict[str, Any], names: Iterable[str], answer: object, **more: object
    ) -> None:
        """`run` with parameters from the table; Gradio reads their names, types and defaults."""
        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        kinds = files | {option: _KINDS[option] for option in names}
        parameters = [
            inspect.Parameter(key, either, default=own.get(key, inspect.Parameter.empty), annotation=kind)
            for key, kind in kinds.items()
        ]

        async def endpoint(*values: object) -> object:  # gradio_client fetches what a generator gives twice
            given = dict(zip(kinds, values, strict=True))
            return await run(service, *(given.pop(file) for file in files), given)

        endpoint.__annotations__ = kinds
        endpoint.__signature__ = inspect.Signature(parameters, return_annotation=answer)  # type: ignore[attr-defined]
        events.api(endpoint, api_name=name, **more)  # type: ignore[arg-type]

    one, many = {"photo": FileData}, {"photos": list[FileData]}
    whole = tuple[FileData, tuple[FileData, FileData], dict]
    several = tuple[list[FileData], list[dict]]
    enhance, batch, quote, models = NAMES
    add(_enhance, enhance, one, _KINDS, whole, api_description=_ENHANCE, **waits)
    add(_batch, batch, many, _KINDS, several, api_description=_BATCH, **waits)
    add(_quote, quote, one, _FORETOLD, dict, api_description=_QUOTE)
    add(_models, models, {}, (), list[dict], api_description=_MODELS)


async def _enhance(service: Service, photo: object, given: dict) -> tuple:
    progress = gr.Progress()
    result, shown = await _made(service, photo, given, partial(_tell, service, progress, ""))
    return _file(shown.file), (_file(shown.before), _file(shown.after)), receipt(result)


async def _batch(service: Service, photos: object, given: dict) -> tuple:
    progress, files, told = gr.Progress(), [], []
    if not isinstance(photos, list) or not photos:
        raise gr.Error("photos must be a list of files", print_exception=False)
    for number, photo in enumerate(photos, 1):
        rest, which = photos[number:], f"photo {number} of {len(photos)}, "

        def tell(step: Step, rest: list = rest, which: str = which) -> None:
            _tell(service, progress, which, step)
            waiting = (photo["path"] for photo in rest if isinstance(photo, dict) and "path" in photo)
            service.touch(*map(str, waiting), *(file["path"] for file in files))

        try:
            result, shown = await _made(service, photo, given, tell)
            files.append(_file(shown.file))
            told.append(receipt(result))
        except gr.Error as error:
            told.append({"error": error.message})
    return files, told


async def _quote(service: Service, photo: object, given: dict) -> dict:
    with service.user_errors():
        data = await asyncio.to_thread(service.upload, _path(photo))
        return await asyncio.to_thread(service.quote, data, given)


async def _models(service: Service, _given: dict) -> list:
    return service.models()


async def _made(
    service: Service, photo: object, given: dict, tell: Callable[[Step], None]
) -> tuple[Result, previews.ResultFiles]:
    """The result and what is shown of it. Raises gr.Error, in the user's words."""
    path = _path(photo)
    with service.user_errors():
        async for step in service.worker.steps(partial(service.restore_upload, path, given)):
            if not isinstance(step, Step):
                return step
            service.touch(path)
            tell(step)
    raise AssertionError("a line without an end")


def _tell(service: Service, progress: gr.Progress, which: str, step: Step) -> None:
    if step.place:
        progress(None, desc=f"{which}place {step.place} in the queue")
    elif step.total:
        progress((step.done, step.total), desc=f"{which}restoring", unit="tiles")
    elif downloading := service.restorer.downloading:
        name, done, total = downloading
        progress((done, total), desc=f"{which}downloading {name}", unit="bytes")


def _path(photo: object) -> str:
    """Where Gradio put an upload. Raises gr.Error for what is none: an address is never fetched."""
    path = photo.get("path") if isinstance(photo, dict) else None
    if not isinstance(path, str):
        raise gr.Error("a photo must be an uploaded file", print_exception=False)
    return path


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
