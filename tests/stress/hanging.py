"""`python tests/stress/hanging.py`: the app with a device that hangs on photos 77 pixels wide."""

import sys
import threading
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import app
from restorer.inference.engine import Guarded

WIDTH = 77


def hang(self: Guarded, *windows: torch.Tensor) -> torch.Tensor:
    if windows[0].shape[-1] == WIDTH:
        threading.Event().wait()  # with the lock, as a thread that hangs inside the device
    return real_call(self, *windows)


if __name__ == "__main__":
    real_call, Guarded.__call__ = Guarded.__call__, hang
    app.main()
