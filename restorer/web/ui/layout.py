"""The page: what is on it and what a click leads to. The handlers are in restore_tab.py."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes

from ...images.file_types import SUFFIXES
from ...models import registry
from ...options import FORMATS, PRESETS
from .. import client_api, previews
from ..service import Service
from . import batch_tab, crop_preview, restore_tab
from .result_view import ResultView

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
TITLE = "Neural Image Restore"
# Everything that computes waits in the worker's one line
_DEVICE: dict[str, Any] = {"concurrency_limit": None}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LATEST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
# What is seen of the closer look is known to the browser alone
_WITH_FRAME = """(spot, shown, frame) => {
  const seen = document.querySelector("#view img");
  return [spot, shown, seen ? `${seen.clientWidth},${seen.clientHeight}` : ""];
}"""
_SIZES = (1, 2, 3, 4, 6, 8)
_STEPS = {"◂ Left": (-1, 0), "▴ Up": (0, -1), "▾ Down": (0, 1), "▸ Right": (1, 0)}


def theme() -> themes.Base:
    """Gradio's plain theme in the system's own fonts: none is fetched from elsewhere."""
    return themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # contrasts of at least 4.5 to 1
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        color_accent="*primary_700",
    )


def build(service: Service) -> gr.Blocks:
    """The page and its interface for programs, ready for server.py to queue and serve."""
    page, settings = restore_tab.RestoreTab(service), service.settings
    age = max(1, round(settings.cleanup_interval)), max(1, round(settings.retention_seconds))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=age) as blocks:
        gr.Markdown(f"# {TITLE}\nMakes old, small and damaged photos large and clear.", elem_id="title")
        with gr.Tab("One photo"):
            fields = _one(page)
        with gr.Tab("Many photos"):
            _many(page, fields)
        client_api.add_endpoints(service)
    return blocks


def _one(page: restore_tab.RestoreTab) -> list[Any]:
    """The first tab; the fields of its options, in the order of handlers.FIELDS."""
    tries, outcome = crop_preview.CropPreview(page), ResultView(page)
    asked, made, shown = gr.State(), gr.State(), gr.State()
    names = gr.State(())
    spot = gr.Textbox(label="Spot of the closer look", visible="hidden", elem_id="spot")
    place = gr.Textbox(label="Spot of the detail", visible="hidden", elem_id="place")
    frame = gr.Textbox(label="Size of the closer look", visible="hidden", elem_id="frame")
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.File(label="Photo", file_types=_endings(), height=140, elem_id="upload")
            samples = gr.Gallery(
                list(map(str, restore_tab.SAMPLES)),
                label="Photos to try",
                show_label=False,
                columns=len(restore_tab.SAMPLES),
                height="auto",
                allow_preview=False,
                object_fit="cover",
                buttons=[],
                elem_id="samples",
            )
            said = gr.Markdown(restore_tab.START, elem_id="said")
            start = gr.Button("Restore", variant="primary", interactive=False, elem_id="start")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            fields = _option_fields(page)
        with gr.Column(scale=3, min_width=320):
            before = gr.Image(
                show_label=False, interactive=False, buttons=[], height=560, visible=False, elem_id="before"
            )
            with gr.Column(visible=False, elem_id="trial") as trial_column:
                gr.Markdown(
                    "Click on the photo to try the options on a detail of it first; with the keyboard, choose"
                    " the spot with the arrow keys and press Enter."
                )
                again = gr.Button("Try a detail", size="sm", elem_id="try")
                detail = _slider("The detail, before and after", "detail", visible=False, max_height=520)
                compare = gr.Button("Compare models", size="sm", visible=False, elem_id="compare")
                taken = gr.Markdown(visible=False, elem_id="taken")
                sheet = gr.Gallery(
                    label="The same detail through every model",
                    show_label=False,
                    columns=3,
                    height="auto",
                    fit_columns=False,
                    allow_preview=False,
                    visible=False,
                    buttons=[],
                    elem_id="sheet",
                )
            compared = gr.Markdown(
                "Left of the handle **before**, right of it **after**. A click shows that spot at 100 %.",
                visible=False,
                elem_id="compared",
            )
            slider = _slider("Before and after", "slider", visible=False)
            with gr.Group(visible=False, elem_id="result") as result:
                told = gr.Markdown(elem_id="told", padding=True)
                download = gr.DownloadButton("Download", variant="primary", elem_id="download")
                with gr.Accordion("Details", open=False, elem_id="details"):
                    receipt = gr.JSON(show_label=False, elem_id="receipt")
            faces = gr.Column(visible=False, elem_id="faces")
            with gr.Column(visible=False, elem_id="closer") as closer:
                gr.Markdown("At 100 %, pixel for pixel:")
                view = _slider("At 100 %, before and after", "view", max_height=previews.VIEW[1])
                with gr.Row(elem_id="steps"):
                    for name, (right, down) in _STEPS.items():
                        button = gr.Button(
                            name, size="sm", min_width=60, elem_id=f"go-{name.split()[1].lower()}"
                        )
                        move = partial(outcome.moved, right, down)
                        button.click(move, [spot, shown, frame], spot, js=_WITH_FRAME, **_QUIET)

    options = list(fields.values())
    given = [upload, *options]
    quote = [said, start, fields["preset"]]
    run = start.click(restore_tab.busy, None, [start, stop], **_QUIET).then(
        page.restore,
        [upload, asked, *options],
        made,
        show_progress_on=[before, slider],
        api_visibility="private",
        **_DEVICE,
    )
    made.change(
        page.show,
        [made, asked, *options],
        [before, trial_column, compared, slider, result, closer, faces, *quote, stop],
        **_QUIET,
    ).then(outcome.opened, made, [shown, spot], **_LATEST)
    tried = {"show_progress_on": detail, "trigger_mode": "always_last", "api_visibility": "private"} | _DEVICE
    place.change(crop_preview.trying, place, again, **_QUIET)
    again.click(crop_preview.trying, None, again, **_QUIET)
    trying = place.change(tries.tried, [place, asked, *options], [detail, compare, again], **tried)
    trying_again = again.click(tries.tried_again, [place, asked, *options], [detail, compare, again], **tried)
    for run_of_detail in (trying, trying_again):
        run_of_detail.failure(crop_preview.tried_out, None, again, **_QUIET)
        run_of_detail.then(page.quoted, [asked, *options], quote, **_LATEST)  # its pace is known now
    comparing = compare.click(
        tries.side_by_side,
        [place, asked, *options],
        [sheet, names, taken],
        show_progress_on=compare,
        api_visibility="private",
        **_DEVICE,
    )
    sheet.select(crop_preview.took, names, [fields["model"], taken], **_QUIET)
    shown.change(
        outcome.told,
        [shown, made],
        [before, trial_column, compared, slider, result, closer, told, download, receipt],
        **_QUIET,
    )
    # Restore is there again when the end of this run has arrived, as a failure: not sooner, or that would be
    # taken for the end of the next one
    stop.click(page.stopped, [asked, *options], said, cancels=run, queue=False, **_QUIET)
    # The cancel comes after the handler: so that one is light
    upload.change(
        restore_tab.dropped,
        None,
        [asked, made, *quote, stop],
        cancels=[run, trying, trying_again, comparing],  # what is late would show the photo before
        queue=False,
        **_QUIET,
    ).then(
        page.picked,
        given,
        [asked, before, *quote, stop, trial_column, detail, sheet, taken, compare, again, place]
        + [shown, spot, compared, slider, result, closer, faces],
        **_LATEST,
    ).then(page.measured, [asked, *options], quote, **_LATEST)
    run.failure(restore_tab.idle, None, [start, stop], **_QUIET)  # stopped; or the queue was full, say
    samples.select(page.sample, None, upload, **_QUIET)
    for name, field in fields.items():
        if name in restore_tab.QUOTED:
            field.change(page.quoted, [asked, *options], quote, **_LATEST).then(
                page.measured, [asked, *options], quote, **_LATEST
            )
    fields["restore_faces"].change(
        restore_tab.faces_wanted,
        fields["restore_faces"],
        [fields["face_model"], fields["face_strength"]],
        **_QUIET,
    )
    fields["long_side"].change(restore_tab.sized, fields["long_side"], fields["outscale"], **_QUIET)
    fields["format"].change(restore_tab.lossy, fields["format"], fields["quality"], **_QUIET)
    fields["keep_metadata"].change(
        restore_tab.kept_metadata, fields["keep_metadata"], fields["remove_gps"], **_QUIET
    )
    fields["model"].change(restore_tab.exact, fields["model"], fields["preset"], **_QUIET)
    for name in ("model", "preset", "outscale"):
        network = [fields["model"], fields["preset"], fields["outscale"]]
        fields[name].change(page.denoise, network, fields["denoise"], **_QUIET)
    for trigger in (spot.change, shown.change):
        trigger(outcome.look, [spot, shown], view, **_LATEST)
    with faces:
        _faces(outcome, made, shown)
    return options


def _slider(label: str, name: str, *, visible: bool = True, max_height: int = 720) -> gr.ImageSlider:
    return gr.ImageSlider(
        label=label,
        show_label=False,  # it would lie on the picture
        type="filepath",
        interactive=False,
        buttons=["fullscreen"],
        max_height=max_height,
        visible=visible,
        elem_id=name,
    )


def _faces(outcome: ResultView, made: gr.State, shown: gr.State) -> None:
    """A row of faces, made anew for each result: before and after, a tick and a strength for each."""

    @gr.render(inputs=made, triggers=[made.change])
    def row(result: object) -> None:
        found = result.faces if isinstance(result, previews.ResultFiles) else ()
        ticks, strengths = [], []
        with gr.Row():
            for number, face in enumerate(found, 1):
                with gr.Column(min_width=240, scale=0):
                    gr.Image(str(face.pair), show_label=False, interactive=False, buttons=[], height=120)
                    left = bool(face.reason)
                    ticks.append(gr.Checkbox(not left, label=f"Face {number} restored", interactive=not left))
                    strengths.append(
                        gr.Slider(
                            0, 1, 0 if left else 1, label=f"Face {number} strength", interactive=not left
                        )
                    )
                    if left:
                        gr.Markdown(f"Left as it was: {face.reason}.")
        if found:
            gr.on(
                [control.change for control in (*ticks, *strengths)],
                outcome.recompose,
                [made, shown, *ticks, *strengths],
                shown,
                **_LATEST,
            )


def _many(page: restore_tab.RestoreTab, fields: list[Any]) -> None:
    """The second tab."""
    tab = batch_tab.BatchTab(page)
    done = gr.State(())
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.File(
                label="Photos",
                file_types=_endings(),
                file_count="multiple",
                height=200,
                elem_id="uploads",
            )
            gr.Markdown("Each is restored with the options of the first tab.")
            start = gr.Button("Restore all", variant="primary", interactive=False, elem_id="start-all")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-all")
            archive = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="download-all")
        with gr.Column(scale=3, min_width=320):
            table = gr.Dataframe(
                type="array",
                headers=["Photo", "State"],
                datatype="str",
                interactive=False,
                wrap=True,
                column_widths=["40%", "60%"],
                buttons=[],
                elem_id="table",
            )
            gallery = gr.Gallery(
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
            slider = _slider("Before and after", "slider-all", visible=False)
            download = gr.DownloadButton("Download this one", visible=False, elem_id="download-one")
    run = start.click(batch_tab.busy_with_all, None, [start, stop, archive, upload], **_QUIET).then(
        tab.restore_all,
        [upload, *fields],
        [table, done],
        show_progress="hidden",
        api_visibility="private",
        **_DEVICE,
    )
    ended = [start, stop, archive]
    # also after Stop, or where the line was full
    run.then(tab.archive, [done, table], [*ended, upload, table], **_QUIET)
    stop.click(None, cancels=run, **_QUIET)
    done.change(batch_tab.results, done, [gallery, slider, download], **_QUIET)
    upload.change(batch_tab.picked_all, [upload, done], [table, done, *ended], cancels=run, **_QUIET)
    gallery.select(batch_tab.compared, done, [slider, download], **_QUIET)


def _option_fields(page: restore_tab.RestoreTab) -> dict[str, Any]:
    "The controls by name, in the order of restore_tab.FIELDS."
    default, weights = page.restorer.options, page.restorer.weights
    faces = default.face_enhance != "off"
    upscalers = [model for model in registry.available(weights) if model.kind == "upscale"]
    preset = default.model in PRESETS
    exact = "" if preset else default.model
    made: dict[str, Any] = {
        "preset": gr.Radio(
            restore_tab.preset_choices(),
            value=default.model if preset else "auto",
            label="Quality",
            elem_id="preset",
            **restore_tab.quality_state(exact),
        ),
        "outscale": gr.Radio(
            [(f"{times}x", times) for times in _SIZES],
            value=default.outscale,
            label="Size",
            info=restore_tab.TIMES,
            elem_id="outscale",
        ),
        "restore_faces": gr.Checkbox(
            faces, label="Restore faces", info=page.face_help(), elem_id="restore_faces"
        ),
    }
    with gr.Accordion("More options", open=False, elem_id="options"):
        made |= {
            "model": gr.Dropdown(
                [("As chosen under Quality", ""), *((page.about(m), m.name) for m in upscalers)],
                value=exact,
                label="Model",
                elem_id="model",
            ),
            "long_side": gr.Number(
                0,
                label="Long side in pixels",
                info="In place of a size in times; 0 for that",
                precision=0,
                elem_id="long_side",
            ),
            "denoise": gr.Slider(
                0,
                1,
                default.denoise,
                label="Denoise",
                info="Less keeps more grain",
                visible=bool(page.restorer.model(default).pair),
                elem_id="denoise",
            ),
            "face_model": gr.Dropdown(
                [model.name for model in registry.MODELS if model.kind == "face"],
                value=default.face_model,
                label="Face model",
                visible=faces,
                elem_id="face_model",
            ),
            "face_strength": gr.Slider(
                0,
                1,
                default.face_strength,
                label="Face strength",
                info="Less keeps more of the face as it was",
                visible=faces,
                elem_id="face_strength",
            ),
            "format": gr.Dropdown(
                [(restore_tab.FORMAT_NAMES[form], form) for form in FORMATS],
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
                info="Of JPEG, WebP and AVIF",
                elem_id="quality",
            ),
            "keep_metadata": gr.Checkbox(
                default.keep_metadata,
                label="Keep metadata",
                info="Date, camera, caption",
                elem_id="keep_metadata",
            ),
            "remove_gps": gr.Checkbox(
                default.remove_gps, label="Remove GPS", info="Where it was taken", elem_id="remove_gps"
            ),
        }
    return {name: made[name] for name in restore_tab.FIELDS}


def _endings() -> list[str]:
    return ["image", *(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)]
