"""Neural Image Restore: old, small and damaged photos made large and clear.

    import restorer
    r = restorer.load()
    result = r.restore(open("old.jpg", "rb").read(), outscale=4)
    open("new.jpg", "wb").write(result.data)

Importing this package imports nothing heavy; torch comes with the first photo.
"""

import importlib
import os
from typing import TYPE_CHECKING

from .errors import (
    BadWeights,
    Cancelled,
    DamagedImage,
    ImageTooLarge,
    InvalidOption,
    InvalidOutput,
    OutOfMemory,
    QueueFull,
    RestoreError,
    UnknownModel,
    UnsupportedImage,
    WeightsUnavailable,
)
from .options import Limits, Options
from .version import __version__

if TYPE_CHECKING:
    from .images.photo import Photo
    from .pipeline import Plan, Restorer, load
    from .result import Result

# Threads that wait for each other spin for microseconds, not milliseconds: torch and ncnn have some each, and
# where anything else runs on the machine a tile could take twenty times as long. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = [
    "__version__",
    "BadWeights",
    "Cancelled",
    "DamagedImage",
    "ImageTooLarge",
    "InvalidOption",
    "InvalidOutput",
    "Limits",
    "Options",
    "OutOfMemory",
    "Photo",
    "Plan",
    "QueueFull",
    "RestoreError",
    "Restorer",
    "Result",
    "UnknownModel",
    "UnsupportedImage",
    "WeightsUnavailable",
    "load",
]

_LATER = {"Photo": "photo", **dict.fromkeys(("Plan", "Restorer", "load"), "pipeline"), "Result": "result"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
