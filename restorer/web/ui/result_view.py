"""Event handlers of a result: show it, view it at 100 %, and change its strength and its faces."""

import shutil
from typing import Any

import gradio as gr

from ...atomic import write_atomic
from ...result import Result
from .. import previews
from ..service import Service, receipt
from . import texts
from .components import PhotoTab


class ResultView:
    """Handlers that need the server's state. A position is "x,y", each 0 to 1."""

    def __init__(self, service: Service, components: PhotoTab) -> None:
        self.service, self.components = service, components

    def show(self, files: previews.ResultFiles) -> dict[Any, Any]:
        """Replace the photo by its result. Raises UnsupportedImage if the result has expired."""
        c, result = self.components, previews.cached_result(files.cache)
        x = y = 0.5
        if result.faces:
            left, top, right, bottom = result.faces[0].box
            x, y = (left + right) / 2 / result.before.width, (top + bottom) / 2 / result.before.height
        return {
            **self._describe(files, result, seconds=True),
            c.photo: gr.Image(visible=False),
            c.crop_column: gr.Column(visible=False),
            c.result_column: gr.Column(visible=True),
            c.outcome: gr.Column(visible=True),
            c.back: gr.Button(visible=True),
            c.faces: gr.Column(visible=bool(result.faces)),
            c.strength: gr.Slider(value=round(100 * result.options.strength)),
            c.look: gr.Markdown(visible=False),
            c.suggestion: None,
            c.zoom_position: f"{x:.4f},{y:.4f}",
        }

    def _describe(self, files: previews.ResultFiles, result: Result, *, seconds: bool) -> dict[Any, Any]:
        c = self.components
        size = texts.file_size(files.file.stat().st_size)
        label = f"Download {texts.FORMAT_NAMES[result.format]}, {size}"
        return {
            c.slider: (str(files.before), str(files.after)),
            c.result_message: texts.result(result, seconds=seconds),
            c.download: gr.DownloadButton(label, value=str(files.file)),
            c.receipt: receipt(result),
            c.mark: gr.Checkbox(False, visible=files.marked.is_file()),
            c.shown: files,
        }

    def recompose(
        self,
        restored: previews.ResultFiles | None,
        shown: previews.ResultFiles | None,
        strength: float,
        *face_values: Any,  # noqa: ANN401  a checkbox and a strength for each face
    ) -> dict[Any, Any]:
        """Show a result with another strength, or other strengths of its faces."""
        if restored is None:
            return gr.skip()
        half = len(face_values) // 2
        chosen = {
            index: float(value) * bool(checked)
            for index, (checked, value) in enumerate(zip(face_values[:half], face_values[half:], strict=True))
        }
        with self.service.user_errors():
            current = previews.cached_result((shown or restored).cache)
            same = all(
                chosen.get(index, 1.0) == current.strengths.get(index, 1.0)
                for index, face in enumerate(current.faces)
                if face.restored
            )
            if same and strength / 100 == current.options.strength:
                return gr.skip()
            result = self.service.restorer.recompose(
                previews.cached_result(restored.cache), strengths=chosen, strength=strength / 100
            )
            file = self.service.new_folder() / restored.file.name
            write_atomic(file, result.data)
            previews.write_previews(result, recomposed := self.service.result_files(file))
            previews.cache_result(result, recomposed)
        if shown and shown != restored:  # the previous recomposition
            shutil.rmtree(shown.cache, ignore_errors=True)
        return self._describe(recomposed, result, seconds=False)  # recomposing takes hardly any time

    def zoom(self, position: str, shown: previews.ResultFiles | None, view_size: str) -> Any:  # noqa: ANN401
        """Show before and after at 100 % around a position; view_size as in pan()."""
        if shown is None or not position:
            return gr.skip()
        with self.service.user_errors():
            result = previews.cached_result(shown.cache)
            spot, visible = parse_position(position), _view_size(view_size)
            before, after = previews.zoomed_pair(result, spot, shown, visible)
        return str(before), str(after)

    def pan(
        self, right: int, down: int, position: str, shown: previews.ResultFiles | None, view_size: str
    ) -> Any:  # noqa: ANN401
        """Move the position by half of the visible part.

        right, down  direction, each -1, 0 or 1
        view_size    "width,height" of the visible part in pixels
        """
        if shown is None or not position:
            return gr.skip()
        with self.service.user_errors():
            result = previews.cached_result(shown.cache)
        return ",".join(
            f"{_moved(centre, direction, min(visible / length, 1)):.4f}"
            for centre, direction, visible, length in zip(
                parse_position(position),
                (right, down),
                _view_size(view_size),
                (result.width, result.height),
                strict=True,
            )
        )


def parse_position(text: str) -> tuple[float, float]:
    """Parse "x,y", each clipped to 0 to 1; return the centre if invalid, as any client may send it."""
    try:
        x, y = (min(max(float(part), 0.0), 1.0) for part in text.split(","))
    except ValueError:
        return 0.5, 0.5
    return (x, y) if x == x and y == y else (0.5, 0.5)


def _view_size(text: str) -> tuple[float, float]:
    """Parse "width,height" from the browser, clipped to 64 pixels and previews.VIEW."""
    try:
        width, height = (float(part) for part in text.split(","))
    except ValueError:
        return previews.VIEW
    return tuple(
        min(max(side, 64.0), limit) if side == side else limit
        for side, limit in zip((width, height), previews.VIEW, strict=True)
    )  # type: ignore[return-value]


def _moved(centre: float, direction: int, visible: float) -> float:
    """Move a centre by half of the visible share of a side, and keep the visible part inside the image."""
    low, high = visible / 2, 1 - visible / 2
    return min(max(min(max(centre, low), high) + direction * visible / 2, low), high)
