"""What the page says."""

from pathlib import Path
from typing import Any

from ...estimate import Plan
from ...models import registry, sources
from ...options import PRESETS, Options
from ...pipeline import Restorer
from ...result import Result

TITLE = "Neural Image Restore"
SUBTITLE = "Makes old, small and damaged photos large and clear."
START = "Choose a photo to begin."
MANY = (
    "Photos are restored with the options chosen under One photo. "
    "Repair fills only what is almost certainly damage, as nobody checks the marks."
)
AUTOPILOT_INFO = (
    "Corrects photos that are certainly faded, skips face restoration where no face is found, "
    "and lists what is wrong with each photo. Size stays as chosen."
)
REPAIR = "Repair damage"
REPAIR_UNSURE = "No definite damage found. Marked areas may be part of the picture."
REPAIR_INFO = "Marked areas will be filled. Check first that they are not part of the picture."
QUALITY_INFO = "Best: most detail. Fast: shortest wait. Auto: by the photo's size."
PRESET_CHOICES = list(zip(("Auto", "Best", "Fast"), PRESETS, strict=True))
COLOUR_NAMES = {"off": "Off", "auto": "If faded", "on": "Correct", "neutral": "Neutral"}
FORMAT_NAMES = {
    "same": "Same as the photo",
    "png": "PNG",
    "jpeg": "JPEG",
    "webp": "WebP",
    "tiff": "TIFF",
    "avif": "AVIF",
    "jxl": "JPEG XL",
}


def repair(seen: bool) -> str:
    """Return the label of the repair section."""
    return f"{REPAIR} · possible damage" if seen else REPAIR


def look(line: str) -> str:
    """Return the line of a look with the labels of the page."""
    return line.replace("colour auto", f"Faded colours: {COLOUR_NAMES['auto']}")


def plan(plan: Plan, restorer: Restorer, options: Options, size: tuple[int, int], cost: float | None) -> str:
    """Describe size, quality, time and cost of a result.

    size  of the photo, (width, height) in pixels
    """
    quality = _quality(plan, options)
    parts = [f"{size[0]} × {size[1]} → **{plan.width} × {plan.height}**", quality]
    required = [plan.model]
    if options.denoise < 1:
        required.append(registry.find(plan.model.denoise_model, restorer.weights))
    missing = [model for model in required if not sources.is_present(model, restorer.weights)]
    missing_faces = missing_face_models(restorer, options)
    if missing:
        parts.append(f"downloads {megabytes(missing)} first")
    elif plan.seconds is not None:
        with_faces = options.face_enhance != "off" and not missing_faces
        extras = ["faces"] * with_faces + ["repair"] * (options.repair != "off")
        parts.append(" plus ".join([f"about {duration(plan.seconds)}", *extras]))
    if cost:
        parts.append(f"${cost:.4f}")
    return " · ".join(parts) + "".join(f"\n- {warning}" for warning in plan.warnings)


def _quality(plan: Plan, options: Options) -> str:
    if options.model not in PRESETS:
        return plan.model.name
    return "fast" if options.model == "fast" or plan.reason else "best quality"


def better(plan: Plan, seconds: float | None) -> str:
    """Describe what Best would take where Auto has chosen a faster model."""
    wait = "" if seconds is None else f", in about {duration(seconds)}"
    return f"{plan.reason[0].upper()}{plan.reason[1:]}. Best gives more detail{wait}."


def result(result: Result, *, seconds: bool) -> str:
    """Describe a result: size, model, time, faces and warnings."""
    text = f"**{result.width} × {result.height}** · {result.model}"
    if seconds:
        text += f" · {duration(result.seconds)}"
    if result.faces and result.face_note not in result.warnings:
        text += f" · {result.face_note}"
    if result.repair and result.repair.mask.any():
        text += f" · {100 * result.repair.share:.2f} % repaired"
    return text + "".join(f"\n- {plain(warning)}" for warning in result.warnings)


def plain(warning: str) -> str:
    """Leave the name of the face detector to the details."""
    if warning.startswith("face detection skipped") and warning.endswith("could not be downloaded"):
        return "faces were only enlarged: the face detector could not be downloaded"
    return warning


def model_label(model: registry.Model, weights: Path) -> str:
    """Return a model's name, purpose, and source of its weights."""
    source = sources.locate(model, weights)
    if source is None:
        return f"{model.name}: {model.about} ({model.bytes / 1e6:.1f} MB, to download)"
    checksum = f", SHA-256 {source.sha256[:12]}" if source.sha256 else ""
    return f"{model.name}: {model.about} ({source.bytes / 1e6:.1f} MB, {source.kind}{checksum})"


def face_info(restorer: Restorer) -> str:
    """Describe what the restoration of faces still has to download."""
    missing = missing_face_models(restorer, restorer.options)
    if not missing:
        return "Finds the faces and restores them one by one"
    return f"Face restoration downloads {megabytes(missing)} the first time"


def missing_face_models(restorer: Restorer, options: Options) -> list[registry.Model]:
    """Return the models that the restoration of faces has to download."""
    required = [(options.face_detector, "detect"), (options.face_model, "face")]
    models = [registry.find(name, restorer.weights, kind) for name, kind in required]
    return [model for model in models if not sources.is_present(model, restorer.weights)]


def megabytes(models: list[registry.Model]) -> str:
    return f"{sum(model.bytes for model in models) / 1e6:.0f} MB"


def preset_state(model: str) -> dict[str, Any]:
    """Return the state of Quality, which is disabled if a model is chosen."""
    if model:
        return {"interactive": False, "info": f"Not used: {model} is chosen under More options"}
    return {"interactive": True, "info": QUALITY_INFO}


def size_state(long_side: float | None, print_size: str) -> dict[str, Any]:
    """Return the state of Size, which is disabled if a long side or the size of a print is set."""
    if long_side or print_size:
        name = "Long side in pixels" if long_side else "Print size"
        return {"interactive": False, "info": f"Not used: {name} is set under More options"}
    return {"interactive": True, "info": ""}


def file_size(bytes_: int) -> str:
    """Return a file size in kB below a megabyte, else in MB."""
    return f"{bytes_ / 1e6:.1f} MB" if bytes_ >= 1e6 else f"{max(1, round(bytes_ / 1e3))} kB"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit, rounded: "40 s", "12 min" or "1.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def period(seconds: float) -> str:
    """Return a time span of at least a second in words, rounded down: "1 hour", "90 minutes"."""
    for length, noun in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds == length or seconds >= 2 * length:
            return count(int(seconds // length), noun)
    return count(int(seconds), "second")
