"""Progress callbacks, and the seconds and incidents of a restoration."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # steps done, total steps; (0, 0) while the total is unknown


@dataclass
class Stats:
    """What happened while an image was upscaled.

    retries  number of out-of-memory errors after which smaller tiles were used
    parts    largest number of parts that an image was cut into, because its maps did not fit in memory
    """

    retries: int = 0
    parts: int = 1


class StageTimer:
    """Measure the seconds of consecutive stages by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end_stage(self, name: str) -> None:
        """End the stage `name` and start the next one."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class PassProgress:
    """Progress over several passes; those to come are assumed to have as many steps as the current one."""

    def __init__(self, progress: Progress | None, passes: int) -> None:
        self._progress, self._passes_left, self._done = progress, passes, 0

    def __call__(self, done: int, total: int) -> None:
        if not total:  # unknown
            if self._progress:
                self._progress(0, 0)
            return
        if self._progress:
            self._progress(self._done + done, self._done + total * max(1, self._passes_left))
        if done == total:
            self._done, self._passes_left = self._done + total, self._passes_left - 1
