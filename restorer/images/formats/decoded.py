"""What a reader takes and returns, whatever the format."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .animation import Timing
from .metadata import RawMetadata


class CheckSize(Protocol):
    """Called with the size of an image before its pixels are read, and of its parts before that.

    part    whether the size is that of a part, for example a tile
    frames  number of images that the file declares
    """

    def __call__(self, width: int, height: int, *, part: bool = False, frames: int = 1) -> None: ...


@dataclass(frozen=True)
class Raw:
    """A reader's result: the samples and the metadata stored with them.

    samples  (H, W) or (H, W, 1 to 4), uint8, or uint16 over its full range; alpha is not premultiplied
    """

    samples: np.ndarray
    blocks: RawMetadata
    apply_orientation: bool = True  # the orientation has yet to be applied
    orientation: int | None = None  # of the container, which counts instead of that of EXIF
    lossless: bool = False
    pages: int = 1
    animated: bool = False
    timing: Timing | None = None  # of frames, one below the other
