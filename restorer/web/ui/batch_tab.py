"""The second tab's handlers: one photo after the other, and all of them together."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ...result import Result
from .. import previews
from ..worker import Step
from .restore_tab import RestoreTab, busy, count


class BatchTab:
    """What those named *values are given are the values of handlers.FIELDS."""

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    async def restore_all(self, paths: list[str] | None, *values: object) -> AsyncIterator[tuple]:
        """Restore one after the other; a bad file never stops the rest."""
        rows = [[Path(path).name, "waiting"] for path in paths or ()]
        service, done = self.page.service, ()
        for row, path in zip(rows, paths or (), strict=True):
            row[1] = "preparing"
            try:
                async for step in service.worker.steps(
                    partial(service.restore_upload, path, self.page.given(values))
                ):
                    # those of a long batch stay until its end
                    service.touch(*(paths or ()), *(one.file for one in done))
                    if isinstance(step, Step):
                        row[1] = _state(step, service.restorer.downloading)
                    else:
                        result, shown = step
                        row[1], done = _summary(result), (*done, shown)
                    yield rows, done
            except Exception as error:  # noqa: BLE001  the others must have their turn
                row[1] = f"failed: {service.user_message(error)}"
        yield rows, done

    def archive(self, done: Sequence[previews.ResultFiles], rows: list[list[str]]) -> tuple:
        """All that is done as one file, and what was not done said in the table."""
        if any(said != "waiting" for _, said in rows):  # else these are others, chosen meanwhile
            rows = [
                [name, said if said.startswith(("done", "failed")) else "not restored: stopped"]
                for name, said in rows
            ]
        start, stop = gr.Button(visible=True), gr.Button(visible=False)
        files = [shown.file for shown in done if shown.file.is_file()]
        upload = gr.File(interactive=True)
        if not files:
            return start, stop, gr.DownloadButton(visible=False), upload, rows
        path = previews.write_zip(files, self.page.settings.processed_folder)
        label = f"Download {count(len(files), 'photo')}, ZIP, {path.stat().st_size / 1e6:.1f} MB"
        return start, stop, gr.DownloadButton(label, value=str(path), visible=True), upload, rows


def busy_with_all() -> tuple[gr.Button, gr.Button, gr.DownloadButton, gr.File]:
    return *busy(), gr.DownloadButton(visible=False), gr.File(interactive=False)


def picked_all(paths: list[str] | None, done: Sequence[previews.ResultFiles]) -> tuple:
    """The photos that wait; what is done of them already stays."""
    made = {one.name: one for one in done}
    kept = tuple(made[path] for path in paths or () if path in made)
    rows = [
        [Path(path).name, f"done: {made[path].file.name}" if path in made else "waiting"]
        for path in paths or ()
    ]
    archive = gr.skip() if kept else gr.DownloadButton(visible=False)
    start = gr.Button(visible=True, interactive=bool(rows))
    return rows, kept, start, gr.Button(visible=False), archive


def results(done: Sequence[previews.ResultFiles]) -> tuple[gr.Gallery, Any, Any]:
    """The gallery of what is done; the comparison is closed when all is new."""
    gallery = gr.Gallery([(str(one.after), one.file.name) for one in done], visible=bool(done))
    if done:
        return gallery, gr.skip(), gr.skip()
    return gallery, gr.ImageSlider(visible=False), gr.DownloadButton(visible=False)


def compared(
    done: Sequence[previews.ResultFiles], event: gr.SelectData
) -> tuple[gr.ImageSlider, gr.DownloadButton]:
    one = done[event.index]
    return (
        gr.ImageSlider((str(one.before), str(one.after)), visible=True),
        gr.DownloadButton(f"Download {one.file.name}", value=str(one.file), visible=True),
    )


def _state(step: Step, downloading: tuple[str, int, int] | None) -> str:
    if step.place:
        return f"next, {count(step.place, 'photo')} of others before it"
    if step.total:
        return f"tile {step.done} of {step.total}"
    if downloading:
        name, done, total = downloading
        return f"downloading {name}, {100 * done // total} %"
    return "preparing"


def _summary(result: Result) -> str:
    said = f"done: {result.width} × {result.height}, {result.model}, {result.seconds:.1f} s"
    notes = dict.fromkeys([result.face_note, *result.warnings])  # the note may be among the warnings
    return "; ".join(filter(None, [said, *notes]))
