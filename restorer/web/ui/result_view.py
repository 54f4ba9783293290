"""A result on the page: told, looked at closely, its faces chosen one by one."""

from typing import Any

import gradio as gr

from ...atomic import write_atomic
from .. import previews
from ..service import receipt
from .restore_tab import FORMAT_NAMES, Failed, RestoreTab, spot_of


class ResultView:
    """The handlers of what was restored."""

    def __init__(self, page: RestoreTab) -> None:
        self.page = page

    def opened(self, made: previews.ResultFiles | Failed | None) -> tuple[Any, Any]:
        """A new result, and the spot of it that is looked at closely: the first face, or the middle."""
        if not isinstance(made, previews.ResultFiles):
            return None, gr.skip()
        with self.page.service.user_errors():
            result = previews.cached_result(made)
        x = y = 0.5
        if result.faces:
            left, top, right, bottom = result.faces[0].box
            x, y = (left + right) / 2 / result.before.width, (top + bottom) / 2 / result.before.height
        return made, f"{x:.4f},{y:.4f}"

    def told(self, shown: previews.ResultFiles | None, made: object) -> tuple:
        """The result in the photo's place: the slider, the line under it, the download and the receipt."""
        if shown is None or not isinstance(made, previews.ResultFiles) or shown.name != made.name:
            return tuple(gr.skip() for _ in range(9))  # another photo was chosen meanwhile
        with self.page.service.user_errors():
            result = previews.cached_result(shown)
        said = f"**{result.width} × {result.height}** · {result.model}"
        if shown == made:  # a recomposition takes next to none
            said += f" · {result.seconds:.1f} s"
        if result.faces and result.face_note not in result.warnings:
            said += f" · {result.face_note}"
        said += "".join(f"\n- {warning}" for warning in result.warnings)
        size = shown.file.stat().st_size / 1e6
        label = f"Download {FORMAT_NAMES[result.format]}, {size:.1f} MB"
        return (
            gr.Image(visible=False),
            gr.Column(visible=False),
            gr.Markdown(visible=True),
            gr.ImageSlider((str(shown.before), str(shown.after)), visible=True),
            gr.Group(visible=True),
            gr.Column(visible=True),
            said,
            gr.DownloadButton(label, value=str(shown.file)),
            receipt(result),
        )

    def recompose(
        self,
        made: previews.ResultFiles,
        shown: previews.ResultFiles | None,
        *choices: Any,  # noqa: ANN401
    ) -> previews.ResultFiles:
        """The result with these ticks and strengths, first all of the one, then all of the other."""
        ticks, strengths = choices[: len(choices) // 2], choices[len(choices) // 2 :]
        chosen = {
            index: float(strength) if tick else 0.0
            for index, (tick, strength) in enumerate(zip(ticks, strengths, strict=True))
        }
        with self.page.service.user_errors():
            result = self.page.restorer.recompose(previews.cached_result(made), strengths=chosen)
            file = self.page.service.new_folder() / made.file.name
            write_atomic(file, result.data)
            again = previews.write_files(result, made.name, file)
            previews.cache_result(result, again)
        if shown and shown != made:  # the recomposition before this one
            previews.drop_result(shown)
        return again

    def look(self, spot: str, shown: previews.ResultFiles | None) -> Any:  # noqa: ANN401  pictures or nothing
        """The two pictures of the closer look."""
        if shown is None or not spot:
            return gr.skip()
        with self.page.service.user_errors():
            before, after = previews.zoomed_pair(previews.cached_result(shown), spot_of(spot), shown)
        return str(before), str(after)

    def moved(self, right: int, down: int, spot: str, shown: previews.ResultFiles | None, frame: str) -> Any:  # noqa: ANN401
        """The spot half of what is seen (frame: its width and height in pixels) further."""
        if shown is None or not spot:
            return gr.skip()
        with self.page.service.user_errors():
            result = previews.cached_result(shown)
        seen = _frame(frame)
        return ",".join(
            f"{_further(part, way, min(side / whole, 1)):.4f}"
            for part, way, side, whole in zip(
                spot_of(spot), (right, down), seen, (result.width, result.height), strict=True
            )
        )


def _frame(text: str) -> tuple[float, float]:
    """Width and height that the browser tells, within what a closer look has."""
    try:
        width, height = (float(part) for part in text.split(","))
    except ValueError:
        return previews.VIEW
    return tuple(
        min(max(side, 64.0), most) if side == side else most
        for side, most in zip((width, height), previews.VIEW, strict=True)
    )  # type: ignore[return-value]


def _further(part: float, way: int, share: float) -> float:
    """Half a view further along one side, of which `share` is seen; never beyond what shows something new."""
    low, high = share / 2, 1 - share / 2
    return min(max(min(max(part, low), high) + way * share / 2, low), high)
