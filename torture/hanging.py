"""`python torture/hanging.py`: the app with a device that hangs for ever at photos 77 pixels wide."""

import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import app
from restorer.engines import Turns
from restorer.tiling import Answers

WIDTH = 77


def hang(self: Turns, tiles: np.ndarray) -> Answers:
    if tiles.shape[2] == WIDTH:
        with self._running:  # as a thread that never comes back from inside the device
            threading.Event().wait()
    return really(self, tiles)


if __name__ == "__main__":
    really, Turns.start = Turns.start, hang
    app.main()
