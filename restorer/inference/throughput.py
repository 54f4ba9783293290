"""Estimate how long a photo takes on this machine."""

import time
from typing import TYPE_CHECKING

import numpy as np

from ..images import encode
from ..images.photo import Meta, Photo
from ..options import FORMATS, Options

if TYPE_CHECKING:
    from .engine import Engine

_SIDE, _SIDE_ON_GPU = 64, 512  # of the image that is timed; a small one does not saturate a GPU
_PHOTO_SIDE = 1536  # of the photo that is encoded


class ThroughputEstimator:
    """Speed of each model and of each format's encoder, from benchmarks and from the photos since."""

    def __init__(self) -> None:
        # by model or format: seconds, and pixels that its network read or its encoder wrote
        self._seen: dict[str, tuple[float, int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def learn(self, name: str, seconds: float, pixels: int) -> None:
        """Add a measurement. Recent photos count more than old ones, large ones more than small ones."""
        old_seconds, old_pixels = self._seen.get(name, (0.0, 0))
        self._seen[name] = seconds + old_seconds / 4, pixels + old_pixels // 4

    def time(self, model: str, engine: "Engine") -> None:
        """Time small images: one to warm up, then the fastest of three."""
        side = _SIDE if engine.device.type == "cpu" else _SIDE_ON_GPU
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        engine(image)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            engine(image)
            seconds.append(time.perf_counter() - start)
        self.learn(model, min(seconds), side * side)

    def time_writers(self) -> None:
        """Time the encoders not timed yet, on a photo with gradients and grain.

        Its size is one at which PNG is fast.
        """
        untimed = [image_format for image_format in FORMATS[1:] if image_format not in self]
        if not untimed:
            return
        rng = np.random.default_rng(0)
        slope = np.arange(_PHOTO_SIDE, dtype=np.uint16) // 16
        grain = rng.integers(0, 8, (_PHOTO_SIDE, _PHOTO_SIDE, 3), np.uint8)
        pixels = grain + np.add.outer(slope, slope).astype(np.uint8)[..., None]
        for image_format in untimed:
            side = _PHOTO_SIDE if image_format in ("png", "tiff") else _PHOTO_SIDE // 4
            photo = Photo(pixels[:side, :side], None, Meta(image_format))
            start = time.perf_counter()
            encode.encode(photo, image_format, quality=Options.quality)
            self.learn(image_format, time.perf_counter() - start, side * side)

    def expected(self, name: str, pixels: int) -> float:
        """Return the seconds for that many pixels; 0 if never timed."""
        total_seconds, total_pixels = self._seen.get(name, (0.0, 1))
        return total_seconds / total_pixels * pixels
