"""The page: its components, and which handler each event calls."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from ...images.file_types import SUFFIXES
from ...models import registry
from ...options import FORMATS, PRESETS, PRINT_DPI
from .. import client_api, previews
from ..gpu_queue import GPU
from ..service import Service
from . import batch_tab, crop_preview, restore_tab
from .batch_tab import BatchTab
from .crop_preview import CropPreview
from .restore_tab import FORMAT_NAMES, RestoreTab
from .result_view import ResultView

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
HEAD_SCRIPT = Path(__file__).with_name("reconnect.js")
TITLE = "Neural Image Restore"
_COMPUTE: dict[str, Any] = {**GPU, "api_visibility": "private"}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LATEST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
# Only the browser knows the size of the view at 100 %
_WITH_VIEW_SIZE = """(position, shown, size) => {
  const image = document.querySelector("#view img");
  return [position, shown, image ? `${image.clientWidth},${image.clientHeight}` : ""];
}"""
_SCALES = (1, 2, 3, 4, 6, 8)
_DIRECTIONS = {"◂ Left": (-1, 0), "▴ Up": (0, -1), "▾ Down": (0, 1), "▸ Right": (1, 0)}


@dataclass(frozen=True)
class _State:
    """Components of the first tab that are not displayed. Positions are "x,y", each 0 to 1."""

    photo: gr.State  # SelectedPhoto
    restored: gr.State  # ResultFiles or Failure of the last run
    shown: gr.State  # ResultFiles on display: restored, or recomposed from it
    model_names: gr.State  # of the compared models
    zoom_position: gr.Textbox
    crop_position: gr.Textbox
    view_size: gr.Textbox  # "width,height" of the visible part of the view at 100 %, in pixels


@dataclass(frozen=True)
class _Controls:
    """The left column of the first tab."""

    upload: gr.File
    samples: gr.Gallery
    message: gr.Markdown
    start: gr.Button
    stop: gr.Button
    fields: dict[str, Any]  # option controls by name, in the order of restore_tab.FIELDS

    @property
    def options(self) -> list[Any]:
        return list(self.fields.values())

    @property
    def estimate(self) -> list[Any]:
        """The outputs of RestoreTab.estimate()."""
        return [self.message, self.start, self.fields["preset"]]


@dataclass(frozen=True)
class _Crop:
    """The photo and the preview of a detail."""

    photo: gr.Image
    column: gr.Column
    preview: gr.Button
    slider: gr.ImageSlider
    compare: gr.Button
    message: gr.Markdown
    gallery: gr.Gallery


@dataclass(frozen=True)
class _Result:
    """The result, its faces, and its view at 100 %."""

    hint: gr.Markdown
    slider: gr.ImageSlider
    group: gr.Group
    message: gr.Markdown
    download: gr.DownloadButton
    receipt: gr.JSON
    faces: gr.Column
    zoom_column: gr.Column
    zoom_slider: gr.ImageSlider
    pan_buttons: dict[tuple[int, int], gr.Button]  # by direction (right, down)


def theme() -> themes.Base:
    """Return Gradio's plain theme with system fonts, so that none is downloaded."""
    return themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # contrast of at least 4.5:1
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        color_accent="*primary_700",
    )


def build(service: Service) -> gr.Blocks:
    """Build the page and the endpoints for gradio_client."""
    page, settings = RestoreTab(service), service.settings
    delete_cache = max(1, round(settings.cleanup_interval)), max(1, round(settings.retention_seconds))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=delete_cache) as blocks:
        gr.Markdown(f"# {TITLE}\nRestores and enlarges old, small and damaged photos.", elem_id="title")
        with gr.Tab("One photo"):
            state = _build_state()
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    controls = _build_controls(page)
                with gr.Column(scale=3, min_width=320):
                    crop = _build_crop()
                    result = _build_result()
            _connect(page, state, controls, crop, result)
        with gr.Tab("Many photos"):
            _build_batch_tab(page, controls.options)
        client_api.add_endpoints(service)
    return blocks


def _build_state() -> _State:
    return _State(
        photo=gr.State(),
        restored=gr.State(),
        shown=gr.State(),
        model_names=gr.State(()),
        zoom_position=gr.Textbox(
            label="Position of the view at 100 %", visible="hidden", elem_id="zoom-position"
        ),
        crop_position=gr.Textbox(label="Position of the detail", visible="hidden", elem_id="crop-position"),
        view_size=gr.Textbox(label="Size of the view at 100 %", visible="hidden", elem_id="view-size"),
    )


def _build_controls(page: RestoreTab) -> _Controls:
    return _Controls(
        upload=gr.File(label="Photo", file_types=_file_types(), height=140, elem_id="upload"),
        samples=gr.Gallery(
            list(map(str, restore_tab.SAMPLES)),
            label="Sample photos",
            show_label=False,
            columns=len(restore_tab.SAMPLES),
            height="auto",
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="samples",
        ),
        message=gr.Markdown(restore_tab.START_MESSAGE, elem_id="summary"),
        start=gr.Button("Restore", variant="primary", interactive=False, elem_id="start"),
        stop=gr.Button("Stop", variant="stop", visible=False, elem_id="stop"),
        fields=_build_fields(page),
    )


def _build_crop() -> _Crop:
    photo = gr.Image(
        show_label=False, interactive=False, buttons=[], height=560, visible=False, elem_id="before"
    )
    with gr.Column(visible=False, elem_id="crop-preview") as column:
        gr.Markdown(
            "Click the photo to preview the options on a detail. With the keyboard, move to it with the"
            " arrow keys and press Enter."
        )
        return _Crop(
            photo=photo,
            column=column,
            preview=gr.Button("Preview a detail", size="sm", elem_id="try"),
            slider=_slider("Detail before and after", "detail", visible=False, max_height=520),
            compare=gr.Button("Compare models", size="sm", visible=False, elem_id="compare"),
            message=gr.Markdown(visible=False, elem_id="batch-summary"),
            gallery=gr.Gallery(
                label="Detail restored by each model",
                show_label=False,
                columns=3,
                height="auto",
                fit_columns=False,
                allow_preview=False,
                visible=False,
                buttons=[],
                elem_id="comparison",
            ),
        )


def _build_result() -> _Result:
    hint = gr.Markdown(
        "**Before** is left of the handle, **after** is right of it. Click to view a part at 100 %.",
        visible=False,
        elem_id="compared",
    )
    slider = _slider("Before and after", "slider", visible=False)
    with gr.Group(visible=False, elem_id="result") as group:
        message = gr.Markdown(elem_id="result-text", padding=True)
        download = gr.DownloadButton("Download", variant="primary", elem_id="download")
        with gr.Accordion("Details", open=False, elem_id="details"):
            receipt = gr.JSON(show_label=False, elem_id="receipt")
    faces = gr.Column(visible=False, elem_id="faces")
    with gr.Column(visible=False, elem_id="zoom-view") as zoom_column:
        gr.Markdown("View at 100 %")
        zoom_slider = _slider("At 100 %, before and after", "view", max_height=previews.VIEW[1])
        with gr.Row(elem_id="steps"):
            pan_buttons = {
                direction: gr.Button(label, size="sm", min_width=60, elem_id=f"go-{label.split()[1].lower()}")
                for label, direction in _DIRECTIONS.items()
            }
    return _Result(
        hint, slider, group, message, download, receipt, faces, zoom_column, zoom_slider, pan_buttons
    )


def _slider(label: str, elem_id: str, *, visible: bool = True, max_height: int = 720) -> gr.ImageSlider:
    return gr.ImageSlider(
        label=label,
        show_label=False,  # it would cover the image
        type="filepath",
        interactive=False,
        buttons=["fullscreen"],
        max_height=max_height,
        visible=visible,
        elem_id=elem_id,
    )


def _connect(page: RestoreTab, state: _State, controls: _Controls, crop: _Crop, result: _Result) -> None:
    """Connect the events of the first tab."""
    view = ResultView(page)
    run = _connect_run(page, state, controls, crop, result, view)
    previews_running = _connect_crop(page, state, controls, crop)
    _connect_upload(page, state, controls, crop, result, cancels=[run, *previews_running])
    _connect_fields(page, state, controls)
    _connect_zoom(state, result, view)
    with result.faces:
        _render_faces(view, state)


def _connect_run(
    page: RestoreTab, state: _State, controls: _Controls, crop: _Crop, result: _Result, view: ResultView
) -> Any:  # noqa: ANN401  Gradio's Dependency
    """Connect start, stop and the display of a result; return the event that restores."""
    buttons = [controls.start, controls.stop]
    panels = [crop.photo, crop.column, result.hint, result.slider, result.group, result.zoom_column]
    run = controls.start.click(restore_tab.show_stop, None, buttons, **_QUIET).then(
        page.restore,
        [controls.upload, state.photo, *controls.options],
        state.restored,
        show_progress_on=[crop.photo, result.slider],
        **_COMPUTE,
    )
    state.restored.change(
        page.finish,
        [state.restored, state.photo, *controls.options],
        [*panels, result.faces, *controls.estimate, controls.stop],
        **_QUIET,
    ).then(view.open_result, state.restored, [state.shown, state.zoom_position], **_LATEST)
    state.shown.change(
        view.show_result,
        [state.shown, state.restored],
        [*panels, result.message, result.download, result.receipt],
        **_QUIET,
    )
    # The start button returns when this run's failure arrives, not sooner: a failure that arrived during the
    # next run would be taken for its end
    controls.stop.click(
        page.stop, [state.photo, *controls.options], controls.message, cancels=run, queue=False, **_QUIET
    )
    run.failure(restore_tab.show_start, None, buttons, **_QUIET)  # stopped, or the queue was full
    return run


def _connect_crop(page: RestoreTab, state: _State, controls: _Controls, crop: _Crop) -> list[Any]:
    """Connect the preview of a detail and the comparison of models; return the events that compute."""
    handlers = CropPreview(page)
    inputs = [state.crop_position, state.photo, *controls.options]
    outputs = [crop.slider, crop.compare, crop.preview]
    latest: dict[str, Any] = {"show_progress_on": crop.slider, "trigger_mode": "always_last", **_COMPUTE}
    state.crop_position.change(crop_preview.disable_button, state.crop_position, crop.preview, **_QUIET)
    crop.preview.click(crop_preview.disable_button, None, crop.preview, **_QUIET)
    clicked = state.crop_position.change(handlers.preview_click, inputs, outputs, **latest)
    repeated = crop.preview.click(handlers.preview, inputs, outputs, **latest)
    for event in (clicked, repeated):
        event.failure(crop_preview.reset_button, None, crop.preview, **_QUIET)
        # the preview has measured the model
        event.then(page.estimate, [state.photo, *controls.options], controls.estimate, **_LATEST)
    compared = crop.compare.click(
        handlers.compare_models,
        inputs,
        [crop.gallery, state.model_names, crop.message],
        show_progress_on=crop.compare,
        **_COMPUTE,
    )
    crop.gallery.select(
        crop_preview.choose_model, state.model_names, [controls.fields["model"], crop.message], **_QUIET
    )
    return [clicked, repeated, compared]


def _connect_upload(
    page: RestoreTab,
    state: _State,
    controls: _Controls,
    crop: _Crop,
    result: _Result,
    *,
    cancels: list[Any],
) -> None:
    # Gradio cancels after the handler returns, so that one is light and the next does the work
    controls.upload.change(
        restore_tab.clear,
        None,
        [state.photo, state.restored, *controls.estimate, controls.stop],
        cancels=cancels,  # a late one would show the previous photo
        queue=False,
        **_QUIET,
    ).then(
        page.picked,
        [controls.upload, *controls.options],
        [state.photo, crop.photo, *controls.estimate, controls.stop]
        + [crop.column, crop.slider, crop.gallery, crop.message, crop.compare, crop.preview]
        + [state.crop_position, state.shown, state.zoom_position]
        + [result.hint, result.slider, result.group, result.zoom_column, result.faces],
        **_LATEST,
    ).then(page.measure, [state.photo, *controls.options], controls.estimate, **_LATEST)
    controls.samples.select(page.choose_sample, None, controls.upload, **_QUIET)


def _connect_fields(page: RestoreTab, state: _State, controls: _Controls) -> None:
    """Update the estimate, and show or disable controls, when an option changes."""
    fields, inputs = controls.fields, [state.photo, *controls.options]
    for name in restore_tab.ESTIMATE_FIELDS:
        fields[name].change(page.estimate, inputs, controls.estimate, **_LATEST).then(
            page.measure, inputs, controls.estimate, **_LATEST
        )
    for name, handler, changed in (
        ("restore_faces", restore_tab.face_controls, [fields["face_model"], fields["face_strength"]]),
        ("format", restore_tab.quality_slider, fields["quality"]),
        ("keep_metadata", restore_tab.gps_checkbox, fields["remove_gps"]),
        ("model", restore_tab.preset_radio, fields["preset"]),
    ):
        fields[name].change(handler, fields[name], changed, **_QUIET)
    sizes = [fields["long_side"], fields["print_size"]]
    for field in sizes:
        field.change(restore_tab.size_radio, sizes, fields["outscale"], **_QUIET)
    network = [fields["model"], fields["preset"], fields["outscale"]]
    for field in network:
        field.change(page.denoise_slider, network, fields["denoise"], **_QUIET)


def _connect_zoom(state: _State, result: _Result, view: ResultView) -> None:
    """Update the view at 100 % when its position or the result changes, and pan it."""
    for component in (state.zoom_position, state.shown):
        component.change(view.zoom, [state.zoom_position, state.shown], result.zoom_slider, **_LATEST)
    for direction, button in result.pan_buttons.items():
        button.click(
            partial(view.pan, *direction),
            [state.zoom_position, state.shown, state.view_size],
            state.zoom_position,
            js=_WITH_VIEW_SIZE,
            **_QUIET,
        )


def _render_faces(view: ResultView, state: _State) -> None:
    """Render each face of a result before and after, with a checkbox and a strength."""

    @gr.render(inputs=state.restored, triggers=[state.restored.change])
    def render(restored: object) -> None:
        faces = restored.faces if isinstance(restored, previews.ResultFiles) else ()
        checkboxes, strengths = [], []
        with gr.Row():
            for number, face in enumerate(faces, 1):
                with gr.Column(min_width=240, scale=0):
                    gr.Image(str(face.pair), show_label=False, interactive=False, buttons=[], height=120)
                    done = not face.reason
                    checkboxes.append(gr.Checkbox(done, label=f"Face {number} restored", interactive=done))
                    strengths.append(
                        gr.Slider(0, 1, int(done), label=f"Face {number} strength", interactive=done)
                    )
                    if not done:
                        gr.Markdown(f"Not restored: {face.reason}.")
        if faces:
            gr.on(
                [control.change for control in (*checkboxes, *strengths)],
                view.recompose,
                [state.restored, state.shown, *checkboxes, *strengths],
                state.shown,
                **_LATEST,
            )


def _build_batch_tab(page: RestoreTab, options: list[Any]) -> None:
    """Build the second tab and connect its events."""
    tab, done = BatchTab(page), gr.State(())
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.File(
                label="Photos", file_types=_file_types(), file_count="multiple", height=200, elem_id="uploads"
            )
            gr.Markdown("All photos are restored with the options of the first tab.")
            start = gr.Button("Restore all", variant="primary", interactive=False, elem_id="start-all")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-all")
            archive = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download-all")
        with gr.Column(scale=3, min_width=320):
            table, gallery = _build_table(), _build_gallery()
            slider = _slider("Before and after", "slider-all", visible=False)
            download = gr.DownloadButton("Download this one", visible=False, elem_id="download-one")
    run = start.click(batch_tab.lock_controls, None, [start, stop, archive, upload], **_QUIET).then(
        tab.restore_all,
        [upload, *options],
        [table, done],
        show_progress="minimal",  # the position in the queue
        show_progress_on=table,
        **_COMPUTE,
    )
    buttons = [start, stop, archive]
    # runs also after Stop and if the queue was full
    run.then(tab.archive, [done, table], [*buttons, upload, table], **_QUIET)
    stop.click(None, cancels=run, **_QUIET)
    done.change(batch_tab.show_results, done, [gallery, slider, download], **_QUIET)
    upload.change(batch_tab.picked_all, [upload, done], [table, done, *buttons], cancels=run, **_QUIET)
    gallery.select(batch_tab.show_comparison, done, [slider, download], **_QUIET)


def _build_table() -> gr.Dataframe:
    return gr.Dataframe(
        type="array",
        headers=["Photo", "State"],
        datatype="str",
        interactive=False,
        wrap=True,
        column_widths=["40%", "60%"],
        buttons=[],
        elem_id="table",
    )


def _build_gallery() -> gr.Gallery:
    return gr.Gallery(
        label="Restored",
        show_label=False,
        columns=4,
        fit_columns=False,
        height="auto",
        allow_preview=False,
        visible=False,
        buttons=[],
        elem_id="gallery",
    )


def _build_fields(page: RestoreTab) -> dict[str, Any]:
    """Build the option controls by name, in the order of restore_tab.FIELDS."""
    fields = _build_main_fields(page)
    with gr.Accordion("More options", open=False, elem_id="options"):
        fields |= _build_model_fields(page) | _build_face_fields(page) | _build_file_fields(page)
    return {name: fields[name] for name in restore_tab.FIELDS}


def _build_main_fields(page: RestoreTab) -> dict[str, Any]:
    default = page.restorer.options
    is_preset = default.model in PRESETS
    return {
        "preset": gr.Radio(
            restore_tab.preset_choices(),
            value=default.model if is_preset else "auto",
            label="Quality",
            elem_id="preset",
            **restore_tab.preset_state("" if is_preset else default.model),
        ),
        "outscale": gr.Radio(
            [(f"{scale}x", scale) for scale in _SCALES],
            value=default.outscale,
            label="Size",
            info=restore_tab.SIZE_INFO,
            elem_id="outscale",
        ),
        "restore_faces": gr.Checkbox(
            default.face_enhance != "off",
            label="Restore faces",
            info=page.face_info(),
            elem_id="restore_faces",
        ),
    }


def _build_model_fields(page: RestoreTab) -> dict[str, Any]:
    default = page.restorer.options
    upscalers = [model for model in registry.available(page.restorer.weights) if model.kind == "upscale"]
    return {
        "model": gr.Dropdown(
            [
                ("As chosen under Quality", ""),
                *((page.model_label(model), model.name) for model in upscalers),
            ],
            value="" if default.model in PRESETS else default.model,
            label="Model",
            elem_id="model",
        ),
        "long_side": gr.Number(
            default.long_side,
            label="Long side in pixels",
            info="Overrides Size; 0 to use Size",
            precision=0,
            elem_id="long_side",
        ),
        "print_size": gr.Textbox(
            default.print_size,
            label="Print size",
            info=f"30x20cm or 12x8in, at {PRINT_DPI} dpi; overrides Size",
            max_lines=1,
            elem_id="print_size",
        ),
        "denoise": gr.Slider(
            0,
            1,
            default.denoise,
            label="Denoise",
            info="Lower keeps more grain",
            visible=bool(page.restorer.model(default).denoise_model),
            elem_id="denoise",
        ),
    }


def _build_face_fields(page: RestoreTab) -> dict[str, Any]:
    default = page.restorer.options
    visible = default.face_enhance != "off"
    return {
        "face_model": gr.Dropdown(
            [model.name for model in registry.MODELS if model.kind == "face"],
            value=default.face_model,
            label="Face model",
            visible=visible,
            elem_id="face_model",
        ),
        "face_strength": gr.Slider(
            0,
            1,
            default.face_strength,
            label="Face strength",
            info="Lower keeps more of the original face",
            visible=visible,
            elem_id="face_strength",
        ),
    }


def _build_file_fields(page: RestoreTab) -> dict[str, Any]:
    default = page.restorer.options
    return {
        "format": gr.Dropdown(
            [(FORMAT_NAMES[image_format], image_format) for image_format in FORMATS],
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
            info="For JPEG, WebP and AVIF",
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
            info="Date, camera, caption",
            elem_id="keep_metadata",
        ),
        "remove_gps": gr.Checkbox(
            default.remove_gps, label="Remove GPS", info="Location of the photo", elem_id="remove_gps"
        ),
    }


def _file_types() -> list[str]:
    return ["image", *(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)]
