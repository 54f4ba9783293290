"""The page: which handler each event calls."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from .. import client_api, previews
from ..gpu_queue import GPU
from ..job_runner import JobRunner
from . import components, crop_preview, form, texts
from .batch_tab import BatchTab
from .components import ManyTab, PhotoTab
from .crop_preview import CropPreview
from .damage_view import DamageView
from .fields import VISIBLE_IF
from .restore_tab import RestoreTab
from .result_view import ResultView

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")
HEAD_SCRIPTS = [Path(__file__).with_name(name) for name in ("submissions.js", "jobs.js", "mask.js")]
_COMPUTE: dict[str, Any] = {**GPU, "api_visibility": "private"}
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LATEST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
# Only the browser knows the size of the view at 100 %; before the first result, it is about that of the stage
_WITH_VIEW_SIZE = """(position, shown, size) => {
  const image = document.querySelector("#view img"), stage = document.querySelector("#stage");
  const width = image?.clientWidth || stage.clientWidth;
  return [position, shown, `${width},${image?.clientHeight || Math.min(720, 0.75 * innerHeight)}`];
}"""
# The mask that was edited on the page is uploaded before a job starts
_WITH_MASK = "async (photo, mask, ...values) => [photo, await window.restorer.uploadMask(), ...values]"
_OWN_JOB = "(path, shown, job, ...values) => [path, shown, window.restorer.ownJob(job), ...values]"
_RECALL = "(remembered, ...values) => [window.restorer.recall(), ...values]"


def build(runner: JobRunner) -> gr.Blocks:
    """Build the page and the endpoints for gradio_client."""
    settings = runner.service.settings
    delete_cache = max(1, round(settings.cleanup_interval)), max(1, round(settings.retention_seconds))
    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=delete_cache) as blocks:
        gr.Markdown(f"# {texts.TITLE}\n{texts.SUBTITLE}", elem_id="title")
        # Not in a tab: a field of a tab is absent until the tab is selected
        fields = components.build_hidden_fields()
        with gr.Tab("One photo"):
            retention = texts.period(settings.retention_seconds)
            photo_tab = PhotoTab(runner.service.restorer, retention, fields)
        with gr.Tab("Many photos"):
            many_tab = ManyTab(fields)
        view = ResultView(runner.service, photo_tab)
        page = RestoreTab(runner, photo_tab, view)
        damage = DamageView(page)
        previewing, looking = _connect_crop(page, photo_tab)
        looking += _connect_photo(page, damage, photo_tab, previewing)
        looking += _connect_fields(page, photo_tab)
        inputs = [photo_tab.remembered, *photo_tab.options]
        outputs = list(dict.fromkeys([*photo_tab.panels, *photo_tab.options]))
        resumed = blocks.load(page.resume, inputs, outputs, js=_RECALL, **_QUIET)
        # Forget what has expired
        resumed.success(None, photo_tab.remembered, None, js="(path) => window.restorer.rememberPhoto(path)")
        looking.append(
            resumed.then(page.show_look, [photo_tab.selected, photo_tab.job], photo_tab.suggestions, **_QUIET)
        )
        _connect_job(page, photo_tab, looking)
        _connect_result(photo_tab, view, damage)
        batch = BatchTab(page, many_tab)
        _connect_batch(batch, photo_tab, many_tab)
        resumed = blocks.load(batch.resume, photo_tab.remembered, many_tab.panels, js=_RECALL, **_QUIET)
        resumed.success(None, many_tab.job, None, js="(batch) => window.restorer.remember({ batch })")
        client_api.add_endpoints(runner.service)
    return blocks


def _connect_photo(page: RestoreTab, damage: DamageView, c: PhotoTab, previewing: list[Any]) -> list[Any]:
    """Show another photo and what is suggested for it; cancel what is previewed of the previous one.

    Return the events that look at the photo and time its model.
    """
    c.remembered.change(None, c.remembered, None, js="(path) => window.restorer.rememberPhoto(path)")
    gr.on(
        [c.remembered.change, c.fields["repair"].change],  # the former changes with the photo
        damage.choose,
        [c.selected, c.fields["repair"]],
        [c.damage_photo, c.damage_map],
        **_LATEST,
    )
    c.damage_photo.change(
        damage.detect,
        [c.damage_photo, c.selected],
        [c.repair, c.repair_message, c.damage_map],
        show_progress="hidden",
        trigger_mode="always_last",
        **_COMPUTE,
    )
    c.damage_map.change(
        None, [c.damage_map, c.remembered], None, js="(...values) => window.restorer.markDamage(...values)"
    )
    inputs = [c.upload, c.selected, c.job, *c.options]
    sample = c.samples.select(page.copy_sample, None, c.upload, **_QUIET)
    looking = []
    for event in (partial(gr.on, [c.upload.upload, c.upload.clear]), sample.then):
        picked = event(page.pick, inputs, c.panels, cancels=previewing, js=_OWN_JOB, **_LATEST)
        # Not one after the other: the next of a chain starts when the one before it is cancelled
        looking.append(picked.then(page.show_look, [c.selected, c.job], c.suggestions, **_LATEST))
        looking.append(picked.then(page.form.measure, [c.selected, *c.options], c.estimate, **_LATEST))
    suggested = [c.fields[name] for name in form.SUGGESTED_FIELDS]
    c.use.click(form.use_suggestions, c.suggestion, suggested, **_QUIET)
    offered = [c.suggestion, *suggested]
    gr.on([one.change for one in offered], form.offer_suggestions, offered, c.use, **_LATEST)
    return looking


def _connect_job(page: RestoreTab, c: PhotoTab, looking: list[Any]) -> None:
    """Start, stop and follow a job, and show its result.

    looking  events whose late answers would replace what is said of the job
    """
    inputs = [c.selected, c.own_mask, *c.options]
    c.start.click(page.start, inputs, c.panels, js=_WITH_MASK, cancels=looking, **_QUIET)
    swapped = [c.photo, c.crop_column, c.result_column, c.faces, c.outcome, c.back]
    c.back.click(page.back, None, swapped, **_QUIET)
    c.stop.click(page.stop, c.job, None, queue=False, **_QUIET)
    c.job.change(None, c.job, None, js="(id) => window.restorer.follow('job', id)")
    inputs = [c.ended, c.job, c.selected, c.restored, *c.options]
    c.ended.change(page.finish, inputs, c.panels, cancels=looking, **_QUIET)


def _connect_crop(page: RestoreTab, c: PhotoTab) -> tuple[list[Any], list[Any]]:
    """Connect the preview of a detail and the comparison of models.

    Return the events that compute, and those that estimate.
    """
    handlers = CropPreview(page)
    inputs = [c.crop_position, c.selected, *c.options]
    outputs = [c.detail, c.compare, c.preview]
    latest: dict[str, Any] = {"show_progress_on": c.detail, "trigger_mode": "always_last", **_COMPUTE}
    c.crop_position.change(crop_preview.disable_button, c.crop_position, c.preview, **_QUIET)
    c.preview.click(crop_preview.disable_button, None, c.preview, **_QUIET)
    clicked = c.crop_position.change(handlers.preview_click, inputs, outputs, **latest)
    repeated = c.preview.click(handlers.preview, inputs, outputs, **latest)
    estimating = []
    for event in (clicked, repeated):
        event.failure(crop_preview.reset_button, None, c.preview, **_QUIET)
        # the preview has measured the model
        estimating.append(event.then(page.form.estimate, [c.selected, *c.options], c.estimate, **_LATEST))
    c.compare.click(crop_preview.disable_button, None, c.compare, **_QUIET)
    compared = c.compare.click(
        handlers.compare_models,
        inputs,
        [c.comparison, c.model_names, c.comparison_message, c.compare],
        show_progress_on=c.compare,
        **_COMPUTE,
    )
    compared.failure(crop_preview.reset_compare_button, None, c.compare, **_QUIET)
    c.comparison.select(
        crop_preview.choose_model, c.model_names, [c.fields["model"], c.comparison_message], **_QUIET
    )
    return [clicked, repeated, compared], estimating


def _connect_fields(page: RestoreTab, c: PhotoTab) -> list[Any]:
    """Update the estimate, and show or disable controls, when an option changes.

    Return the events that estimate.
    """
    fields, inputs = c.fields, [c.selected, *c.options]
    changes = [fields[name].change for name in form.ESTIMATE_FIELDS]
    estimating = [
        gr.on(changes, handler, inputs, c.estimate, **_LATEST)
        for handler in (page.form.estimate, page.form.measure)
    ]
    for name, (other, is_shown) in VISIBLE_IF.items():
        fields[other].change(partial(form.show, is_shown), fields[other], fields[name], **_QUIET)
    fields["model"].change(form.preset_radio, fields["model"], fields["preset"], **_QUIET)
    sizes = [fields["long_side"], fields["print_size"]]
    gr.on([field.change for field in sizes], form.size_radio, sizes, fields["outscale"], **_LATEST)
    network = [fields["model"], fields["preset"], fields["outscale"]]
    changes = [field.change for field in network]
    gr.on(changes, page.form.denoise_slider, network, fields["denoise"], **_LATEST)
    return estimating


def _connect_result(c: PhotoTab, view: ResultView, damage: DamageView) -> None:
    """Update the view at 100 % when its position or the result changes, pan it, and recompose the result."""
    viewed = [c.zoom_position, c.shown, c.view_size]
    changes = [c.zoom_position.change, c.shown.change]
    gr.on(changes, view.zoom, viewed, c.view, js=_WITH_VIEW_SIZE, **_LATEST)
    for direction, button in c.pan_buttons.items():
        button.click(
            partial(view.pan, *direction),
            viewed,
            c.zoom_position,
            js=_WITH_VIEW_SIZE,
            **_QUIET,
        )
    c.mark.change(damage.mark, [c.shown, c.mark], c.slider, **_LATEST)
    with c.faces:
        _render_faces(c, view)


def _render_faces(c: PhotoTab, view: ResultView) -> None:
    """Render each face of a result before and after, with a checkbox and a strength."""

    @gr.render(inputs=c.restored, triggers=[c.restored.change])
    def render(restored: object) -> None:
        if not isinstance(restored, previews.ResultFiles):
            return
        images, checkboxes, strengths = [], [], []
        with gr.Row():
            for index, face in enumerate(previews.cached_result(restored.cache).faces):
                picture, number, done = str(restored.face(index)), index + 1, not face.reason
                with gr.Column(min_width=240, scale=0):
                    images.append(
                        gr.Image(picture, show_label=False, interactive=False, buttons=[], height=120)
                    )
                    checkboxes.append(gr.Checkbox(done, label=f"Face {number} restored", interactive=done))
                    strengths.append(
                        gr.Slider(0, 1, int(done), label=f"Face {number} strength", interactive=done)
                    )
                    if not done:
                        gr.Markdown(f"Not restored: {face.reason}.")

        def recompose(*values: Any) -> dict[Any, Any]:  # noqa: ANN401  of components
            updates = view.recompose(*values)
            files = updates.get(c.shown)
            if isinstance(files, previews.ResultFiles):
                updates |= {image: str(files.face(index)) for index, image in enumerate(images)}
            return updates

        gr.on(
            [c.strength.release, *(control.change for control in (*checkboxes, *strengths))],
            recompose,
            [c.restored, c.shown, c.strength, *checkboxes, *strengths],
            [c.slider, c.result_message, c.mark, c.download, c.receipt, c.shown, *images],
            **_LATEST,
        )


def _connect_batch(batch: BatchTab, c: PhotoTab, many: ManyTab) -> None:
    chosen = [many.upload.upload, many.upload.clear]
    gr.on(chosen, batch.pick, [many.upload, many.job], many.panels, **_LATEST)
    many.upload.delete(batch.remove, [many.upload, many.job], many.panels, **_LATEST)
    many.start.click(batch.start, [many.upload, many.autopilot, *c.options], many.panels, **_QUIET)
    many.stop.click(batch.page.stop, many.job, None, queue=False, **_QUIET)
    continued = many.continue_button.click(batch.proceed, many.job, many.panels, **_QUIET)
    for event in (many.job.change, continued.success):
        event(None, many.job, None, js="(id) => window.restorer.follow('batch', id)")
    many.changed.change(batch.update, [many.job, many.upload], many.panels, **_LATEST)
    many.gallery.select(batch.compare, many.job, many.panels, **_QUIET)
