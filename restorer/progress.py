"""Progress callbacks, and the seconds of each stage of a restoration."""

import time
from collections.abc import Callable

Progress = Callable[[int, int], None]  # steps done, steps in all; (0, 0) while the total is unknown


class StageTimer:
    """The seconds of one stage after the other, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """The stage of that name ends here, and the next begins."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
