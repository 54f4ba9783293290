"""Progress callbacks, and the seconds of each stage of a restoration."""

import time
from collections.abc import Callable

Progress = Callable[[int, int], None]  # steps done, total steps; (0, 0) while the total is unknown


class StageTimer:
    """Measure the seconds of consecutive stages by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the stage `name` and start the next one."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
