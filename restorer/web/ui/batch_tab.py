"""Event handlers of the second tab, which restores many photos one after the other."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ...result import Result
from .. import previews
from ..worker import Step
from .restore_tab import RestoreTab, count, show_stop


class BatchTab:
    """Handlers that need the server's state. `*values` are the values of restore_tab.FIELDS."""

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    async def restore_all(self, paths: list[str] | None, *values: object) -> AsyncIterator[tuple]:
        """Yield the table rows and the results so far. A photo that fails does not stop the others."""
        rows = [[Path(path).name, "waiting"] for path in paths or ()]
        service, done = self.page.service, ()
        for row, path in zip(rows, paths or (), strict=True):
            row[1] = "preparing"
            task = partial(service.restore_upload, path, self.page.option_values(values))
            try:
                async with aclosing(service.worker.steps(task)) as steps:
                    async for step in steps:
                        service.touch(*(files.file for files in done))  # kept until a long batch ends
                        if isinstance(step, Step):
                            row[1] = _step_text(step, service.restorer.downloading)
                        else:
                            result, files = step
                            row[1], done = _summary(result), (*done, files)
                        yield rows, done
            except Exception as error:  # noqa: BLE001  one file of a batch: the others must run
                row[1] = f"failed: {service.user_message(error)}"
        yield rows, done

    def archive(self, done: Sequence[previews.ResultFiles], rows: list[list[str]]) -> tuple:
        """Offer the results as a ZIP file and mark unfinished photos as stopped."""
        if any(state != "waiting" for _, state in rows):  # else other photos were chosen meanwhile
            rows = [
                [name, state if state.startswith(("done", "failed")) else "not restored: stopped"]
                for name, state in rows
            ]
        start, stop = gr.Button(visible=True), gr.Button(visible=False)
        paths = [files.file for files in done if files.file.is_file()]
        upload = gr.File(interactive=True)
        if not paths:
            return start, stop, gr.DownloadButton(visible=False), upload, rows
        path = previews.write_zip(paths, self.page.settings.processed_folder)
        label = f"Download {count(len(paths), 'photo')}, ZIP, {path.stat().st_size / 1e6:.1f} MB"
        return start, stop, gr.DownloadButton(label, value=str(path), visible=True), upload, rows


def lock_controls() -> tuple[gr.Button, gr.Button, gr.DownloadButton, gr.File]:
    return *show_stop(), gr.DownloadButton(visible=False), gr.File(interactive=False)


def picked_all(paths: list[str] | None, done: Sequence[previews.ResultFiles]) -> tuple:
    """List the chosen photos; results of photos that are still among them stay."""
    by_name = {files.name: files for files in done}
    remaining = tuple(by_name[path] for path in paths or () if path in by_name)
    rows = [
        [Path(path).name, f"done: {by_name[path].file.name}" if path in by_name else "waiting"]
        for path in paths or ()
    ]
    archive = gr.skip() if remaining else gr.DownloadButton(visible=False)
    start = gr.Button(visible=True, interactive=bool(rows))
    return rows, remaining, start, gr.Button(visible=False), archive


def show_results(done: Sequence[previews.ResultFiles]) -> tuple[gr.Gallery, Any, Any]:
    """Show the results; without any, hide the comparison too."""
    gallery = gr.Gallery([(str(files.after), files.file.name) for files in done], visible=bool(done))
    if done:
        return gallery, gr.skip(), gr.skip()
    return gallery, gr.ImageSlider(visible=False), gr.DownloadButton(visible=False)


def show_comparison(
    done: Sequence[previews.ResultFiles], event: gr.SelectData
) -> tuple[gr.ImageSlider, gr.DownloadButton]:
    files = done[event.index]
    return (
        gr.ImageSlider((str(files.before), str(files.after)), visible=True),
        gr.DownloadButton(f"Download {files.file.name}", value=str(files.file), visible=True),
    )


def _step_text(step: Step, downloading: tuple[str, int, int] | None) -> str:
    if step.total:
        return f"tile {step.done} of {step.total}"
    if downloading:
        name, done, total = downloading
        return f"downloading {name}, {100 * done // total} %"
    return "preparing"


def _summary(result: Result) -> str:
    text = f"done: {result.width} × {result.height}, {result.model}, {result.seconds:.1f} s"
    notes = dict.fromkeys([result.face_note, *result.warnings])  # the warnings may contain the face note
    return "; ".join(filter(None, [text, *notes]))
