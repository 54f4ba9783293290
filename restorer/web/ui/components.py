"""The page's components, by tab."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from ...images.file_types import SUFFIXES
from ...pipeline import Restorer
from .. import previews
from . import fields, texts

ASSETS = Path(__file__).parents[3] / "assets"
SAMPLES = sorted((ASSETS / "samples").glob("*.jpg"))
EXAMPLE = ASSETS / "samples/colosseum.jpg", ASSETS / "example.jpg"
PLACEHOLDER = ASSETS / "placeholder.svg"
IMAGES = (*SAMPLES, EXAMPLE[1], PLACEHOLDER)
_EXAMPLE_TEXT = "Example: 280 × 210 → 1120 × 840 by RealESRGAN_x4plus"
_PROGRESS = """
<div role="progressbar" aria-label="Restoring" aria-valuemin="0" aria-valuemax="100"><div></div></div>
<p role="status"></p>"""
_DIRECTIONS = {"◂ Left": (-1, 0), "▴ Up": (0, -1), "▾ Down": (0, 1), "▸ Right": (1, 0)}


class PhotoTab:
    """The components of the first tab. A position is "x,y", each 0 to 1."""

    def __init__(self, restorer: Restorer, retention: str, hidden: dict[str, Any]) -> None:
        """Build the tab.

        retention  how long results are kept, in words
        """
        self.selected = gr.State()  # SelectedPhoto
        self.suggestion = gr.State()  # the suggested values of option controls by name
        self.restored = gr.State()  # ResultFiles of the last job
        self.shown = gr.State()  # ResultFiles on display: restored, or recomposed from it
        self.model_names = gr.State(())  # of the compared models
        self.zoom_position, self.crop_position = hidden["zoom-position"], hidden["crop-position"]
        self.damage_photo = hidden["damage-photo"]  # the upload whose damage is to be marked
        # "UPLOAD|FILE": the probabilities that mask.js marks on this upload
        self.damage_map = hidden["damage-map"]
        self.own_mask = hidden["own-mask"]  # stands for the upload of an edited mask, see layout._WITH_MASK
        self.view_size = hidden["view-size"]  # for "width,height" in pixels, see layout._WITH_VIEW_SIZE
        self.job = hidden["job"]  # id of the job that jobs.js follows
        self.ended = hidden["ended"]  # set by jobs.js to the id of a job that has ended
        self.remembered = hidden["remembered"]  # what jobs.js remembers across reloads, as JSON
        with gr.Row(elem_id="workspace"):
            with gr.Column(elem_id="input", min_width=0):
                self.upload = gr.File(
                    show_label=False, file_types=_file_types(), height=170, elem_id="upload"
                )
                self.samples = _gallery("samples", "Sample photos", list(map(str, SAMPLES)), columns=3)
            with gr.Column(visible=False, elem_id="outcome", min_width=0) as self.outcome:
                self._build_outcome(retention)
            with gr.Column(elem_id="settings", min_width=0):
                self._build_settings(restorer)
            with gr.Column(elem_id="stage", min_width=0):
                self._build_stage()

    def _build_settings(self, restorer: Restorer) -> None:
        self.fields = fields.Fields(restorer)
        self.fields.build_main()
        self.message = gr.Markdown(elem_id="summary")
        self.start = gr.Button("Restore", variant="primary", interactive=False, elem_id="start")
        self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        with gr.Accordion(texts.REPAIR, open=False, elem_id="repair") as self.repair:
            self.fields.build_repair()
            self.repair_message = gr.Markdown(texts.REPAIR_INFO, elem_id="repair-text")
            _build_brush()
            self.back = gr.Button("Correct the marks", size="sm", visible=False, elem_id="back")
        with gr.Accordion("More options", open=False, elem_id="options"):
            self.fields.build_model()
            self.fields.build_faces()
            self.fields.build_file()

    def _build_stage(self) -> None:
        with gr.Column(elem_id="example") as self.example:
            _slider("Example, before and after", "example-slider", value=EXAMPLE)
            gr.Markdown(_EXAMPLE_TEXT, elem_id="example-text")
        self.photo = gr.Image(
            show_label=False,
            interactive=False,
            buttons=[],
            container=False,
            visible=False,
            elem_id="before",
        )
        self.look = gr.Markdown(visible=False, elem_id="look")
        self.use = gr.Button("Use suggestions", size="sm", visible=False, elem_id="use")
        gr.HTML(_PROGRESS, elem_id="progress")
        with gr.Column(visible=False, elem_id="crop-preview") as self.crop_column:
            self.preview = gr.Button("Preview a detail", size="sm", elem_id="try")
            gr.Markdown("Or click the photo: only that detail is restored.", elem_id="crop-text")
            self.detail = _slider("Detail before and after", "detail", visible=False, max_height=520)
            self.compare = gr.Button("Compare models", size="sm", visible=False, elem_id="compare")
            self.comparison_message = gr.Markdown(visible=False, elem_id="comparison-text")
            self.comparison = _gallery(
                "comparison", "Detail restored by each model", columns=3, visible=False
            )
        with gr.Column(visible=False, elem_id="result") as self.result_column:
            self.slider = _slider("Before and after", "slider")
            gr.Button("Hold to see the original", size="sm", elem_id="hold")
        self.faces = gr.Column(visible=False, elem_id="faces")
        with self.result_column, gr.Column(elem_id="zoom-view"):
            gr.Markdown("Click the result to view that part at 100 %; wheel or pinch to zoom.")
            self.view = _slider("At 100 %, before and after", "view", max_height=previews.VIEW[1])
            with gr.Row(elem_id="steps"):
                self.pan_buttons = {  # by direction (right, down)
                    direction: gr.Button(
                        label, size="sm", min_width=60, elem_id=f"go-{label.split()[1].lower()}"
                    )
                    for label, direction in _DIRECTIONS.items()
                }

    def _build_outcome(self, retention: str) -> None:
        self.result_message = gr.Markdown(elem_id="result-text")
        self.strength = gr.Slider(
            0,
            100,
            100,
            step=1,
            label="Restoration strength",
            interactive=True,
            info="0: enlarged only; unchanged at 1x",
            elem_id="strength",
        )
        self.mark = gr.Checkbox(label="Mark what was repaired", visible=False, elem_id="mark")
        self.download = gr.DownloadButton("Download", variant="primary", elem_id="download")
        gr.Markdown(f"Kept here for {retention}.", elem_id="retention")
        with gr.Accordion("Details", open=False, elem_id="details"):
            self.receipt = gr.JSON(show_label=False, elem_id="receipt")

    @property
    def options(self) -> list[Any]:
        return list(self.fields.values())

    @property
    def damage_options(self) -> list[Any]:
        """The options that another photo resets."""
        return [self.fields["repair"], self.fields["repair_sensitivity"]]

    @property
    def estimate(self) -> list[Any]:
        """The outputs of an estimate."""
        return [self.message, self.start, self.fields["preset"]]

    @property
    def suggestions(self) -> list[Any]:
        """The outputs of a look at the photo."""
        return [self.look, self.suggestion, self.repair]

    @property
    def panels(self) -> list[Any]:
        """Everything that another photo or a result changes."""
        return [
            *(self.upload, self.samples, self.example, self.photo, *self.estimate, self.stop),
            *self.suggestions,
            *(self.crop_column, self.preview, self.detail, self.compare),
            *(self.comparison_message, self.comparison),
            *(self.result_column, self.slider, self.faces),
            *(self.outcome, self.result_message, self.strength, self.mark, self.download, self.receipt),
            *(*self.damage_options, self.repair_message, self.back, self.damage_map),
            *(self.selected, self.restored, self.shown),
            *(self.zoom_position, self.crop_position, self.job, self.remembered),
        ]


class ManyTab:
    """The components of the second tab."""

    def __init__(self, hidden: dict[str, gr.Textbox]) -> None:
        self.job = hidden["batch"]
        # set by jobs.js whenever a photo of the job is done, and when the job has ended
        self.changed = hidden["batch-changed"]
        with gr.Row(elem_id="many"):
            with gr.Column(elem_id="many-input", min_width=0):
                self.upload = gr.File(
                    show_label=False,
                    file_types=_file_types(),
                    file_count="multiple",
                    height=220,
                    elem_id="uploads",
                )
                self.autopilot = gr.Checkbox(
                    label="Use suggestions for each photo", info=texts.AUTOPILOT_INFO, elem_id="autopilot"
                )
                self.message = gr.Markdown(texts.MANY, elem_id="batch-summary")
                self.continue_button = gr.Button("Continue", visible=False, elem_id="continue-all")
                self.start = gr.Button(
                    "Restore all", variant="primary", interactive=False, elem_id="start-all"
                )
                self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-all")
                self.archive = gr.DownloadButton(
                    "Download", visible=False, variant="primary", elem_id="download-all"
                )
            with gr.Column(elem_id="many-stage", min_width=0):
                gr.HTML(_PROGRESS, elem_id="progress-all")
                self.slider = _slider("Before and after", "slider-all", visible=False)
                self.download = gr.DownloadButton("Download this one", visible=False, elem_id="download-one")
                self.gallery = _gallery("gallery", "Photos", columns=4, visible=False)

    @property
    def panels(self) -> list[Any]:
        """Everything that other photos or results change."""
        return [
            *(self.upload, self.message, self.start, self.stop, self.continue_button, self.archive),
            *(self.gallery, self.slider, self.download, self.job),
        ]


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


def build_hidden_fields() -> dict[str, gr.Textbox]:
    """Build the values that the page's scripts set or read."""
    return {
        name: gr.Textbox(label=name, visible="hidden", elem_id=name)
        for name in (
            *("zoom-position", "crop-position", "view-size", "damage-photo", "damage-map", "own-mask"),
            *("job", "ended", "remembered", "batch", "batch-changed"),
        )
    }


def _build_brush() -> None:
    """Build what mask.js reads to change the mask by hand."""
    gr.Radio(["Off", "Add", "Remove"], value="Off", label="Brush", interactive=True, elem_id="brush")
    gr.Slider(1, 100, 20, step=1, label="Brush size", interactive=True, elem_id="brush-size")
    gr.Button("Clear brush strokes", size="sm", elem_id="brush-undo")


def _slider(label: str, elem_id: str, *, value: Any = None, **options: Any) -> gr.ImageSlider:  # noqa: ANN401
    return gr.ImageSlider(
        value,
        label=label,
        show_label=False,  # it would cover the image
        type="filepath",
        interactive=False,
        container=False,
        buttons=["fullscreen"],
        elem_id=elem_id,
        **options,
    )


def _gallery(elem_id: str, label: str, value: Any = None, **options: Any) -> gr.Gallery:  # noqa: ANN401
    return gr.Gallery(
        value,
        label=label,
        show_label=False,
        height="auto",
        fit_columns=False,
        allow_preview=False,
        object_fit="cover",
        buttons=[],
        container=False,
        elem_id=elem_id,
        **options,
    )


def _file_types() -> list[str]:
    return ["image", *(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)]
