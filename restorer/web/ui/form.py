"""The form of options: its values as Options, which controls it shows, and the estimate of the result.

Handlers return updates by component; components that are left out stay as they are.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ...errors import RestoreError
from ...estimate import Plan
from ...images.photo import Photo
from ...options import PRESETS, Options
from ..service import Service
from . import texts
from .components import PhotoTab

_CLEAN_STRENGTH = 0.5  # at 1x, where the photo's own detail counts; docs/colour.md has the figures
# The fields that a look sets, and those that the estimate depends on
SUGGESTED_FIELDS: tuple[str, ...] = ("outscale", "long_side", "print_size", "colour", "restore_faces")
ESTIMATE_FIELDS = (
    "preset",
    "outscale",
    "long_side",
    "print_size",
    "model",
    "denoise",
    "restore_faces",
    "face_model",
    "format",
    "max_bytes",
    "repair",
)
Updates = dict[Any, Any]


@dataclass(frozen=True)
class SelectedPhoto:
    """The path of an upload, and its size, depth and metadata without its samples (`outline`)."""

    path: str
    outline: Photo


class Form:
    """Handlers that need the server's state. `*values` and `values` are the values of PhotoTab.fields."""

    def __init__(self, service: Service, components: PhotoTab) -> None:
        self.service, self.restorer, self.components = service, service.restorer, components

    def option_values(self, values: tuple[object, ...]) -> dict[str, object]:
        """Return the values as options by name, as Service.options() takes them."""
        options: dict[str, object] = dict(zip(self.components.fields, values, strict=True))
        restore_faces, default = options.pop("restore_faces"), self.restorer.options.face_enhance
        options["face_enhance"] = "off" if not restore_faces else "auto" if default == "off" else default
        repair, default = options.pop("repair"), self.restorer.options.repair
        options["repair"] = "off" if not repair else "on" if default == "off" else default
        for name in ("long_side", "print_size", "max_bytes"):  # an empty field is None
            options[name] = options[name] or getattr(Options, name)
        if options["outscale"] == 1 and not options["long_side"] and not options["print_size"]:
            options["strength"] = _CLEAN_STRENGTH
        options["model"] = options["model"] or options["preset"]
        del options["preset"]
        return options

    def values_of(self, options: dict[str, Any], values: tuple[object, ...]) -> tuple[object, ...]:
        """Return the values that option_values() turns into `options`; `values` of fields that it lacks."""
        model = options.get("model")
        known = options | {
            "preset": model if model in PRESETS else None,
            "model": None if model is None else "" if model in PRESETS else model,
        }
        for name, option in (("restore_faces", "face_enhance"), ("repair", "repair")):
            known[name] = options[option] != "off" if option in options else None
        pairs = zip(self.components.fields, values, strict=True)
        return tuple(value if known.get(name) is None else known[name] for name, value in pairs)

    def options(self, values: tuple[object, ...], before: Photo) -> Options:
        """Return the values as Options for a photo. Raises what Service.options() raises."""
        return self.service.options(self.option_values(values), before)

    def warning(self, error: Exception) -> str:
        """Return an error's message for a line on the page."""
        return f"⚠ {self.user_message(error)}"

    def user_message(self, error: Exception) -> str:
        """Return an error's message with the labels of controls, not names such as print_size."""
        message = self.service.user_message(error)
        for name, field in self.components.fields.items():
            if "_" in name:
                message = message.replace(name, field.label)
        return message

    # Estimates

    def estimate(self, photo: SelectedPhoto | None, *values: object) -> Updates:
        """Show size, quality, time and cost of the result, or an error; and each preset's time."""
        return self.updates(photo, values) if photo else gr.skip()

    def measure(self, photo: SelectedPhoto | None, *values: object) -> Updates:
        """Update the estimate after loading and timing the model, which may take seconds."""
        if photo:
            with suppress(RestoreError):  # the estimate reports it
                pixels = photo.outline.width * photo.outline.height
                self.restorer.measure(pixels, **vars(self.options(values, photo.outline)))
        return self.estimate(photo, *values)

    def updates(
        self,
        photo: SelectedPhoto,
        values: tuple[object, ...],
        note: str = "",
        start: dict[str, Any] | None = None,
    ) -> Updates:
        """Return the updates of PhotoTab.estimate.

        note   precedes the estimate
        start  changes of the start button
        """
        c, before = self.components, photo.outline
        try:
            options = self.options(values, before)
            plan = self.restorer.plan(before, **vars(options))
            size = before.width, before.height
            text = texts.plan(plan, self.restorer, options, size, self.service.cost(plan))
            if plan.reason:
                text += f"\n\n{texts.better(plan, self._seconds(photo, values, 'best'))}"
            possible = True
        except RestoreError as error:
            text, possible = self.warning(error), False
        return {
            c.message: f"{note}\n\n{text}" if note else text,
            c.start: gr.update(interactive=possible, **(start or {})),
            c.fields["preset"]: self._presets(photo, values),
        }

    def _presets(self, photo: SelectedPhoto, values: tuple[object, ...]) -> dict[str, Any]:
        """Return the choices of Quality, each with its time if known."""
        choices = []
        for name, preset in texts.PRESET_CHOICES:
            seconds = self._seconds(photo, values, preset)
            choices.append((name if seconds is None else f"{name} · {texts.duration(seconds)}", preset))
        return gr.update(choices=choices)

    def _seconds(self, photo: SelectedPhoto, values: tuple[object, ...], model: str) -> float | None:
        """Return the estimated time with another model; None if unknown."""
        try:
            options = replace(self.options(values, photo.outline), model=model)
            plan: Plan = self.restorer.plan(photo.outline, **vars(options))
        except RestoreError:
            return None
        return plan.seconds

    # Controls

    def denoise_slider(self, model: str, preset: str, outscale: float) -> gr.Slider:
        """Show the denoise slider for models that support it."""
        if self.restorer.model(Options(model=model or preset, outscale=outscale)).denoise_model:
            return gr.Slider(visible=True)
        return gr.Slider(visible=False, value=Options.denoise)


def show(is_shown: Callable[[Any], bool], value: object) -> dict[str, Any]:
    """Show or hide a control; see VISIBLE_IF."""
    return gr.update(visible=is_shown(value))


def size_radio(long_side: float | None, print_size: str) -> gr.Radio:
    """Disable Size if a long side in pixels or the size of a print overrides it."""
    return gr.Radio(**texts.size_state(long_side, print_size))


def preset_radio(model: str) -> gr.Radio:
    return gr.Radio(**texts.preset_state(model))


def suggested_values(options: dict[str, Any]) -> dict[str, Any]:
    """Return the values of SUGGESTED_FIELDS, by name, for the options that a look suggests."""
    values = {"outscale": int(options["outscale"]), "long_side": 0, "print_size": ""}
    if "colour" in options:
        values["colour"] = options["colour"]
    if "face_enhance" in options:
        values["restore_faces"] = options["face_enhance"] != "off"
    return values


def offer_suggestions(suggestion: dict[str, Any] | None, *values: object) -> gr.Button:
    """Show the button that uses the suggestions if it would change something.

    values  of SUGGESTED_FIELDS
    """
    chosen = dict(zip(SUGGESTED_FIELDS, values, strict=True))
    changes = any(chosen[name] not in (value, None) for name, value in (suggestion or {}).items())
    return gr.Button(visible=changes)


def use_suggestions(suggestion: dict[str, Any] | None) -> list[Any]:
    """Set SUGGESTED_FIELDS as a look suggests."""
    return [(suggestion or {}).get(name, gr.skip()) for name in SUGGESTED_FIELDS]
