"""Event handlers of a result: show it, view it at 100 %, and choose its faces one by one."""

from typing import Any

import gradio as gr

from ...atomic import write_atomic
from .. import previews
from ..service import receipt
from .restore_tab import FORMAT_NAMES, Failure, RestoreTab, parse_position


class ResultView:
    """Handlers that need the server's state. A position is "x,y", each 0 to 1."""

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    def open_result(self, restored: previews.ResultFiles | Failure | None) -> tuple[Any, Any]:
        """Return a new result, and the position of the first face or the centre for the 100 % view."""
        if not isinstance(restored, previews.ResultFiles):
            return None, gr.skip()
        with self.page.service.user_errors():
            result = previews.cached_result(restored)
        x = y = 0.5
        if result.faces:
            left, top, right, bottom = result.faces[0].box
            x, y = (left + right) / 2 / result.before.width, (top + bottom) / 2 / result.before.height
        return restored, f"{x:.4f},{y:.4f}"

    def show_result(self, shown: previews.ResultFiles | None, restored: object) -> tuple:
        """Replace the photo by the result: slider, description, download and receipt."""
        if (
            shown is None
            or not isinstance(restored, previews.ResultFiles)
            or shown.name != restored.name  # another photo was chosen meanwhile
        ):
            return tuple(gr.skip() for _ in range(9))
        with self.page.service.user_errors():
            result = previews.cached_result(shown)
        text = f"**{result.width} × {result.height}** · {result.model}"
        if shown == restored:  # recomposing takes hardly any time
            text += f" · {result.seconds:.1f} s"
        if result.faces and result.face_note not in result.warnings:
            text += f" · {result.face_note}"
        text += "".join(f"\n- {warning}" for warning in result.warnings)
        size = shown.file.stat().st_size / 1e6
        label = f"Download {FORMAT_NAMES[result.format]}, {size:.1f} MB"
        return (
            gr.Image(visible=False),
            gr.Column(visible=False),
            gr.Markdown(visible=True),
            gr.ImageSlider((str(shown.before), str(shown.after)), visible=True),
            gr.Group(visible=True),
            gr.Column(visible=True),
            text,
            gr.DownloadButton(label, value=str(shown.file)),
            receipt(result),
        )

    def recompose(
        self,
        restored: previews.ResultFiles,
        shown: previews.ResultFiles | None,
        *controls: Any,  # noqa: ANN401
    ) -> previews.ResultFiles:
        """Blend the faces again. `controls`: all checkboxes, then all strengths, in the faces' order."""
        checked, strengths = controls[: len(controls) // 2], controls[len(controls) // 2 :]
        chosen = {
            index: float(strength) if on else 0.0
            for index, (on, strength) in enumerate(zip(checked, strengths, strict=True))
        }
        with self.page.service.user_errors():
            result = self.page.restorer.recompose(previews.cached_result(restored), strengths=chosen)
            file = self.page.service.new_folder() / restored.file.name
            write_atomic(file, result.data)
            recomposed = previews.write_files(result, restored.name, file)
            previews.cache_result(result, recomposed)
        if shown and shown != restored:  # the previous recomposition
            previews.drop_result(shown)
        return recomposed

    def zoom(self, position: str, shown: previews.ResultFiles | None) -> Any:  # noqa: ANN401  images or nothing
        """Show before and after at 100 % around a position."""
        if shown is None or not position:
            return gr.skip()
        with self.page.service.user_errors():
            result = previews.cached_result(shown)
            before, after = previews.zoomed_pair(result, parse_position(position), shown)
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
        with self.page.service.user_errors():
            result = previews.cached_result(shown)
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
