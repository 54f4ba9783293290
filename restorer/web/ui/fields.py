"""The controls of the options, by name."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ...models import registry
from ...options import CHOICES, FORMATS, PRESETS, PRINT_DPI
from ...pipeline import Restorer
from . import texts

_SCALES = (1, 2, 3, 4, 6, 8)
# By control: another one, built before it, and for which values of that it is shown
VISIBLE_IF: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "face_model": ("restore_faces", bool),
    "face_strength": ("restore_faces", bool),
    "colour_strength": ("colour", lambda colour: colour != "off"),
    "quality": ("format", lambda image_format: image_format not in ("png", "tiff")),  # those are lossless
    "remove_gps": ("keep_metadata", bool),
}


class Fields(dict[str, Any]):
    """Controls by name, in the order in which handlers receive their values; each method builds some."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self._restorer, self._default = restorer, restorer.options

    def _add(self, component: Callable[..., Any], name: str, **details: Any) -> None:  # noqa: ANN401
        """Add the control of an option, with its default unless `details` have a value."""
        if "value" not in details:
            details["value"] = getattr(self._default, name)
        if name in VISIBLE_IF:
            other, is_shown = VISIBLE_IF[name]
            details["visible"] = is_shown(self[other].value)
        self[name] = component(**{"elem_id": name, **details})

    def _add_share(self, name: str, **details: Any) -> None:  # noqa: ANN401
        """Add the slider of an option from 0 to 1."""
        self._add(gr.Slider, name, minimum=0, maximum=1, **details)

    def build_main(self) -> None:
        """Build the controls that are always shown."""
        model = self._default.model
        self._add(
            gr.Radio,
            "preset",
            choices=texts.PRESET_CHOICES,
            value=model if model in PRESETS else "auto",
            label="Quality",
            **texts.preset_state("" if model in PRESETS else model),
        )
        self._add(gr.Radio, "outscale", choices=[(f"{scale}x", scale) for scale in _SCALES], label="Size")
        self._add(
            gr.Checkbox,
            "restore_faces",
            value=self._default.face_enhance != "off",
            label="Restore faces",
            info=texts.face_info(self._restorer),
        )

    def build_model(self) -> None:
        """Build those of the network, the size and the colours."""
        weights, default = self._restorer.weights, self._default
        upscalers = [model for model in registry.available(weights) if model.kind == "upscale"]
        named = [(texts.model_label(model, weights), model.name) for model in upscalers]
        self._add(
            gr.Dropdown,
            "model",
            choices=[("As chosen under Quality", ""), *named],
            value="" if default.model in PRESETS else default.model,
            label="Model",
        )
        info = "Instead of Size; 0 to use Size"
        self._add(gr.Number, "long_side", label="Long side in pixels", info=info, precision=0)
        info = f"30x20cm or 12x8in, at {PRINT_DPI} dpi; instead of Size"
        self._add(gr.Textbox, "print_size", label="Print size", info=info, max_lines=1)
        visible = bool(self._restorer.model(default).denoise_model)
        self._add_share("denoise", label="Denoise", info="Lower keeps more grain", visible=visible)
        choices = [(texts.COLOUR_NAMES[name], name) for name in CHOICES["colour"]]
        info = "Correct keeps sepia; Neutral removes it"
        self._add(gr.Radio, "colour", choices=choices, label="Faded colours", info=info)
        info = "Lower keeps more of the photo's colours"
        self._add_share("colour_strength", label="Colour strength", info=info)

    def build_faces(self) -> None:
        """Build those of faces."""
        choices = [model.name for model in registry.MODELS if model.kind == "face"]
        self._add(gr.Dropdown, "face_model", choices=choices, label="Face model")
        self._add_share("face_strength", label="Face strength", info="Lower keeps more of the original face")

    def build_file(self) -> None:
        """Build those of the result's file."""
        choices = [(texts.FORMAT_NAMES[image_format], image_format) for image_format in FORMATS]
        self._add(gr.Dropdown, "format", choices=choices, label="File format")
        self._add(
            gr.Slider,
            "quality",
            minimum=1,
            maximum=100,
            step=1,
            label="File quality",
            info="For JPEG, WebP, AVIF and JPEG XL",
        )
        info = "Lowers the quality; 0: no limit"
        self._add(gr.Number, "max_bytes", label="Largest file in bytes", info=info, precision=0)
        info = "Keeps date, camera and caption"
        self._add(gr.Checkbox, "keep_metadata", label="Keep metadata", info=info)
        info = "Removes coordinates, place names and the maker note"
        self._add(gr.Checkbox, "remove_gps", label="Remove location", info=info)

    def build_repair(self) -> None:
        """Build those of damage."""
        self._add(
            gr.Checkbox,
            "repair",
            value=self._default.repair != "off",
            label="Fill dust, hairs and scratches",
            info="Fills the marked areas before the photo is enlarged",
            elem_id="repair_on",
        )
        self._add_share("repair_sensitivity", step=0.01, label="Sensitivity", info="Higher marks more")
