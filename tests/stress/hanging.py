"""`python tests/stress/hanging.py`: the app with a device that hangs on photos 77 pixels wide."""

import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import app
from restorer.inference.model_cache import LockedUpscaler
from restorer.inference.tiling import Answers

WIDTH = 77


def hang(self: LockedUpscaler, tiles: np.ndarray) -> Answers:
    if tiles.shape[2] == WIDTH:
        with self._lock:  # as a thread that hangs inside the device
            threading.Event().wait()
    return real_start(self, tiles)


if __name__ == "__main__":
    real_start, LockedUpscaler.start = LockedUpscaler.start, hang
    app.main()
