"""The endpoints for gradio_client, with the page's defaults."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from gradio import FileData, events

from ..options import CHOICES, Options
from ..result import Result
from . import previews
from .gpu_queue import GPU
from .service import Service, receipt
from .worker import Step

NAMES = ("enhance", "enhance_batch", "quote", "look", "models")
_OPTIONS = (  # in the order of positional arguments
    *("face_enhance", "outscale", "long_side", "print_size", "dpi", "model", "strength", "denoise"),
    *("colour", "colour_strength", "autopilot", "face_model", "face_strength"),
    *("repair", "repair_sensitivity", "format", "quality", "max_bytes", "keep_metadata", "remove_gps"),
)
_QUOTE_OPTIONS = ("face_enhance", "outscale", "long_side", "print_size", "dpi", "model", "denoise", "format")
_ENHANCE = """Restore one photo. Returns the full-size file, previews of before and after in one size (JPEG,
at most 2048 pixels a side), and the receipt: software, model, its sha256, options, pixels, seconds, faces,
warnings. face_enhance is true, false or "auto"; long_side, in pixels, or print_size, such as "30x20cm", with
dpi replaces outscale; max_bytes lowers the quality until the file is no larger. mask is a picture of the
photo's size, whose light pixels are filled instead of detected damage; if anything was filled, the receipt
has its mask as a file."""
_BATCH = """Restore photos one after the other; a photo that fails does not stop the others. Returns the
full-size files of the restored photos and, for every photo in the order of the input, its receipt or
{"error": message}. The options are those of /enhance."""
_QUOTE = "Estimate what restoring a photo takes: size, model, tiles, seconds, cost; null if unknown."
_LOOK = "Say what is wrong with a photo, and which options suit it: findings, options, and both in one line."
_MODELS = "List all models: name, kind, description, licence, bytes, and whether the file is present."


def add_endpoints(service: Service) -> None:
    """Add the endpoints to the current Blocks."""
    photo, photos, mask = {"photo": FileData}, {"photos": list[FileData]}, {"mask": FileData | None}
    options, quoted = ({name: _type(name) for name in names} for names in (_OPTIONS, _QUOTE_OPTIONS))
    defaults = vars(service.restorer.options) | {"mask": None}

    def add(
        name: str,
        run: Callable[[Service, dict[str, Any]], Awaitable[object]],
        types: dict[str, Any],
        returns: object,
        **event_options: Any,  # noqa: ANN401
    ) -> None:
        """Add run(service, values) as an endpoint whose arguments have these names and types.

        Gradio reads names, types and defaults from the signature built here.
        """
        parameters = [
            inspect.Parameter(
                *(key, inspect.Parameter.POSITIONAL_OR_KEYWORD),
                default=defaults.get(key, inspect.Parameter.empty),
                annotation=annotation,
            )
            for key, annotation in types.items()
        ]

        async def endpoint(*arguments: object) -> object:  # of a generator, gradio_client fetches files twice
            return await run(service, dict(zip(types, arguments, strict=True)))

        endpoint.__annotations__ = types
        endpoint.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        events.api(endpoint, api_name=name, **event_options)

    enhance_returns = tuple[FileData, tuple[FileData, FileData], dict]
    batch_returns = tuple[list[FileData], list[dict]]
    enhance, batch, quote, look, models = NAMES
    add(enhance, _enhance, photo | options | mask, enhance_returns, api_description=_ENHANCE, **GPU)
    add(batch, _batch, photos | options, batch_returns, api_description=_BATCH, **GPU)
    add(quote, partial(_examined, Service.estimate), photo | quoted, dict, api_description=_QUOTE)
    add(look, partial(_examined, Service.look), photo, dict, api_description=_LOOK)
    add(models, _models, {}, list[dict], api_description=_MODELS)


def _type(option: str) -> Any:  # noqa: ANN401
    """Return the type of an option."""
    if option not in CHOICES:
        return type(getattr(Options, option))
    choices: Any = Literal[CHOICES[option]]
    return bool | choices if option == "face_enhance" else choices


async def _enhance(service: Service, values: dict[str, Any]) -> tuple:
    photo, mask = values.pop("photo"), values.pop("mask")
    report = partial(_report, service, gr.Progress(), "")
    result, files = await _restore(service, photo, values, report, mask)
    described = receipt(result)
    if name := previews.mask_name(result):
        described["mask"] = _file_data(files.file.with_name(name))
    return _file_data(files.file), (_file_data(files.before), _file_data(files.after)), described


async def _batch(service: Service, values: dict[str, Any]) -> tuple:
    progress, files, receipts = gr.Progress(), [], []
    photos = values.pop("photos")
    if not isinstance(photos, list) or not photos:
        raise gr.Error("photos must be a list of files", print_exception=False)
    for number, photo in enumerate(photos, 1):

        def report(step: Step, prefix: str = f"photo {number} of {len(photos)}, ") -> None:
            _report(service, progress, prefix, step)
            service.touch(*(file["path"] for file in files))

        try:
            result, result_files = await _restore(service, photo, values, report)
            files.append(_file_data(result_files.file))
            receipts.append(receipt(result))
        except gr.Error as error:
            if service.queue.client_left():
                raise
            receipts.append({"error": error.message})
    return files, receipts


async def _examined(examine: Callable[..., dict], service: Service, values: dict[str, Any]) -> dict:
    """Return what `examine` returns for an upload and options. Raises gr.Error."""
    photo = values.pop("photo")
    with service.user_errors():
        data = await asyncio.to_thread(service.upload, _path(photo))
        return await asyncio.to_thread(examine, service, data, values)


async def _models(service: Service, _values: dict[str, Any]) -> list:
    return service.models()


async def _restore(
    service: Service, photo: object, values: dict, report: Callable[[Step], None], mask: object = None
) -> tuple[Result, previews.ResultFiles]:
    """Restore an upload. Raises gr.Error with a message for the user."""
    path, mask_path = _path(photo), None if mask is None else _path(mask, "mask")
    with service.user_errors():
        return await service.run(partial(service.restore_upload, path, values, mask=mask_path), report)


def _report(service: Service, progress: gr.Progress, prefix: str, step: Step) -> None:
    if step.total:
        progress((step.done, step.total), desc=f"{prefix}restoring", unit="tiles")
    elif downloading := service.restorer.downloading:
        name, done, total = downloading
        progress((done, total), desc=f"{prefix}downloading {name}", unit="bytes")


def _path(photo: object, name: str = "photo") -> str:
    """Return the path of an upload. Raises gr.Error for anything else; URLs are never downloaded."""
    path = photo.get("path") if isinstance(photo, dict) else None
    if not isinstance(path, str):
        raise gr.Error(f"{name} must be an uploaded file", print_exception=False)
    return path


def _file_data(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
