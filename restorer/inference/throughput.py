"""Estimate how long a photo takes on this machine."""

import time

import numpy as np

from ..images import encode
from ..images.photo import Meta, Photo
from ..options import FORMATS, Options
from .model_cache import LockedUpscaler

_TIMED, _TIMED_ON_GPU = 64, 512  # side of the tile that is timed: a small one keeps no GPU busy
_WRITTEN = 1536  # side of the picture that is written to time it


class ThroughputEstimator:
    """How fast each model and each format's writer is here, from what was timed and from the photos since."""

    def __init__(self) -> None:
        # by model or format: seconds for so many pixels, of a model's tiles or of a format's pictures
        self._seen: dict[str, tuple[float, int]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def learn(self, name: str, seconds: float, pixels: int) -> None:
        """The latest photo counts most, and a large one more than a small one."""
        before, seen = self._seen.get(name, (0.0, 0))
        self._seen[name] = seconds + before / 4, pixels + seen // 4

    def time(self, model: str, engine: LockedUpscaler) -> None:
        """Time small tiles: the first of all warms up, and of the others the fastest was disturbed least."""
        side = min(_TIMED_ON_GPU, engine.best_tile()) if engine.asynchronous else _TIMED
        tile = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        engine(tile)
        seconds = []
        for _ in range(3):
            engine(tile)
            seconds.append(engine.seconds)
        self.learn(model, min(seconds), side * side)

    def time_writers(self) -> None:
        """Time writers that were not yet: a picture with slopes and grain, of a size that PNG writes fast."""
        untimed = [form for form in FORMATS[1:] if form not in self]
        if not untimed:
            return
        rng = np.random.default_rng(0)
        slope = np.arange(_WRITTEN, dtype=np.uint16) // 16
        grain = rng.integers(0, 8, (_WRITTEN, _WRITTEN, 3), np.uint8)
        picture = grain + np.add.outer(slope, slope).astype(np.uint8)[..., None]
        for form in untimed:
            side = _WRITTEN if form in ("png", "tiff") else _WRITTEN // 4
            subject = Photo(picture[:side, :side], None, Meta(form))
            start = time.perf_counter()
            encode.encode(subject, form, quality=Options.quality)
            self.learn(form, time.perf_counter() - start, side * side)

    def expected(self, name: str, pixels: int) -> float:
        """Seconds for so many pixels of tiles, or of a picture; 0 for what was not timed."""
        seconds, seen = self._seen.get(name, (0.0, 1))
        return seconds / seen * pixels
