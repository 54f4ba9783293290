"""The controls of the options, by name."""

from typing import Any

import gradio as gr

from ...models import registry
from ...options import CHOICES, FORMATS, PRESETS, PRINT_DPI, Options
from ...pipeline import Restorer
from . import texts

_SCALES = (1, 2, 3, 4, 6, 8)
# The option controls, in the order in which handlers receive their values
FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "print_size",
    "model",
    "denoise",
    "colour",
    "colour_strength",
    "restore_faces",
    "face_model",
    "face_strength",
    "format",
    "quality",
    "max_bytes",
    "keep_metadata",
    "remove_gps",
    "repair",
    "repair_sensitivity",
)


def build_main_fields(restorer: Restorer) -> dict[str, Any]:
    """Build the controls that are always shown."""
    default = restorer.options
    is_preset = default.model in PRESETS
    return {
        "preset": gr.Radio(
            texts.PRESET_CHOICES,
            value=default.model if is_preset else "auto",
            label="Quality",
            elem_id="preset",
            **texts.preset_state("" if is_preset else default.model),
        ),
        "outscale": gr.Radio(
            [(f"{scale}x", scale) for scale in _SCALES],
            value=default.outscale,
            label="Size",
            elem_id="outscale",
        ),
        "restore_faces": gr.Checkbox(
            default.face_enhance != "off",
            label="Restore faces",
            info=texts.face_info(restorer),
            elem_id="restore_faces",
        ),
    }


def build_model_fields(restorer: Restorer) -> dict[str, Any]:
    """Build those of the network, the size and the colours."""
    default = restorer.options
    upscalers = [model for model in registry.available(restorer.weights) if model.kind == "upscale"]
    return {
        "model": gr.Dropdown(
            [
                ("As chosen under Quality", ""),
                *((texts.model_label(model, restorer.weights), model.name) for model in upscalers),
            ],
            value="" if default.model in PRESETS else default.model,
            label="Model",
            elem_id="model",
        ),
        "long_side": gr.Number(
            default.long_side,
            label="Long side in pixels",
            info="Instead of Size; 0 to use Size",
            precision=0,
            elem_id="long_side",
        ),
        "print_size": gr.Textbox(
            default.print_size,
            label="Print size",
            info=f"30x20cm or 12x8in, at {PRINT_DPI} dpi; instead of Size",
            max_lines=1,
            elem_id="print_size",
        ),
        "denoise": _share(
            default,
            "denoise",
            label="Denoise",
            info="Lower keeps more grain",
            visible=bool(restorer.model(default).denoise_model),
        ),
        "colour": gr.Radio(
            [(texts.COLOUR_NAMES[name], name) for name in CHOICES["colour"]],
            value=default.colour,
            label="Faded colours",
            info="Correct keeps sepia; Neutral removes it",
            elem_id="colour",
        ),
        "colour_strength": _share(
            default,
            "colour_strength",
            label="Colour strength",
            info="Lower keeps more of the photo's colours",
            visible=default.colour != "off",
        ),
    }


def build_face_fields(default: Options) -> dict[str, Any]:
    """Build those of faces."""
    visible = default.face_enhance != "off"
    return {
        "face_model": gr.Dropdown(
            [model.name for model in registry.MODELS if model.kind == "face"],
            value=default.face_model,
            label="Face model",
            visible=visible,
            elem_id="face_model",
        ),
        "face_strength": _share(
            default,
            "face_strength",
            label="Face strength",
            info="Lower keeps more of the original face",
            visible=visible,
        ),
    }


def build_file_fields(default: Options) -> dict[str, Any]:
    """Build those of the result's file."""
    return {
        "format": gr.Dropdown(
            [(texts.FORMAT_NAMES[image_format], image_format) for image_format in FORMATS],
            value=default.format,
            label="File format",
            elem_id="format",
        ),
        "quality": gr.Slider(
            1,
            100,
            default.quality,
            step=1,
            label="File quality",
            info="For JPEG, WebP, AVIF and JPEG XL",
            elem_id="quality",
        ),
        "max_bytes": gr.Number(
            default.max_bytes,
            label="Largest file in bytes",
            info="Lowers the quality; 0: no limit",
            precision=0,
            elem_id="max_bytes",
        ),
        "keep_metadata": gr.Checkbox(
            default.keep_metadata,
            label="Keep metadata",
            info="Keeps date, camera and caption",
            elem_id="keep_metadata",
        ),
        "remove_gps": gr.Checkbox(
            default.remove_gps,
            label="Remove location",
            info="Removes coordinates, place names and the maker note",
            elem_id="remove_gps",
        ),
    }


def _share(default: Options, name: str, **details: Any) -> gr.Slider:  # noqa: ANN401
    """Build the slider of an option from 0 to 1."""
    return gr.Slider(0, 1, getattr(default, name), elem_id=name, **details)


def build_repair_fields(default: Options) -> dict[str, Any]:
    """Build those of damage."""
    return {
        "repair": gr.Checkbox(
            default.repair != "off",
            label="Fill dust, hairs and scratches",
            info="Fills the marked areas before the photo is enlarged",
            elem_id="repair_on",
        ),
        "repair_sensitivity": _share(
            default,
            "repair_sensitivity",
            step=0.01,
            label="Sensitivity",
            info="Higher marks more",
        ),
    }
