"""Neural Image Restore: upscale and restore old, small and damaged photos.

    import restorer
    r = restorer.load()
    result = r.restore(open("old.jpg", "rb").read(), outscale=4)
    open("new.jpg", "wb").write(result.data)

Importing this package is cheap; torch is imported when the first model is loaded.
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
    UnsuitableOption,
    UnsupportedImage,
    WeightsUnavailable,
)
from .options import Limits, Options
from .version import __version__

if TYPE_CHECKING:
    from .estimate import Plan
    from .images.photo import Photo
    from .pipeline import Restorer, load
    from .result import Result

# Let OpenMP threads spin for microseconds, not milliseconds: torch and ncnn each have a thread pool, and on a
# busy machine a tile could take twenty times as long. Read when torch is imported.
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
    "UnsuitableOption",
    "UnsupportedImage",
    "WeightsUnavailable",
    "load",
]

_LAZY = {
    "Photo": "images.photo",
    "Plan": "estimate",
    **dict.fromkeys(("Restorer", "load"), "pipeline"),
    "Result": "result",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
