"""Estimate what a restoration will take on this machine."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from .errors import UnsupportedImage
from .images import encode
from .images.photo import Meta, Photo
from .inference.upscale import network_pixels, tiles_needed
from .models import registry, selection, sources
from .networks import Networks
from .options import FORMATS, Options
from .result import Result

_SIDE, _SIDE_ON_GPU = 64, 512  # of the image that is timed; a small one does not saturate a GPU
_PHOTO_SIDE = 1536  # of the photo that is encoded


@dataclass(frozen=True)
class Plan:
    """What restoring a photo will take.

    width, height  of the result in pixels
    model          the model that will be used
    reason         why "auto" does not use the best model, in words for users; "" if it does
    tiles          number of tiles; None while the model is not loaded
    seconds        estimate for this machine without faces; None before anything was measured
    warnings       what was lost in reading the photo, and what the output format cannot hold or limit, in
                   words for users
    """

    width: int
    height: int
    model: registry.Model
    reason: str
    tiles: int | None
    seconds: float | None
    warnings: tuple[str, ...]


class Estimator:
    """Speed of each model and of each format's encoder, from benchmarks and from the photos since."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        # by model or format: seconds, and pixels that its network read or its encoder wrote
        self._seen: dict[str, tuple[float, int]] = {}

    def plan(self, before: Photo, chosen: Options, size: tuple[int, int]) -> Plan:
        """Return what restoring a photo will take, see Restorer.plan().

        size  (width, height) of the result
        """
        pixels, weights = before.width * before.height, self._networks.weights
        model = self._networks.model(chosen, pixels)
        large = self._networks.is_large(chosen, pixels)
        faster = large and model != selection.best(weights, chosen, fetch=False)
        image_format, tiles, seconds = encode.output_format(before, chosen.format), None, None
        warnings = before.meta.warnings + encode.losses(before, image_format)
        if chosen.max_bytes and not encode.adjustable(before, image_format):
            name = image_format.upper()
            warnings += (f"{name} has no quality to lower: a result above {chosen.max_bytes:,} bytes fails",)
        engine = self._networks.loaded_upscaler(model)
        if engine and model.name in self._seen:
            tile = chosen.tile or engine.best_tile()
            tiles = tiles_needed(before, engine, outscale=chosen.outscale, tile=tile)
            read = network_pixels(before, engine, chosen.outscale)
            seconds = self.expected(model.name, read) + self.expected(image_format, size[0] * size[1])
        return Plan(
            *size,
            model,
            "large photo on a CPU: fast model" if faster else "",
            tiles,
            seconds,
            warnings,
        )

    def measure(self, chosen: Options, pixels: int) -> None:
        """Load and time the model of these options, see Restorer.measure()."""
        model = self._networks.model(chosen, pixels)
        if model.name not in self._seen and sources.is_present(model, self._networks.weights):
            # the denoise strength does not change the time
            engine = self._networks.loaded_upscaler(model) or self._networks.upscaler(model, 1.0)
            side = _SIDE if engine.device.type == "cpu" else _SIDE_ON_GPU
            image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
            engine(image)
            self.learn(model.name, min(_seconds(lambda: engine(image)) for _ in range(3)), side * side)
            self._time_writers()

    def _time_writers(self) -> None:
        """Time the encoders not timed yet, on a photo with gradients and grain.

        Its size is one at which PNG is fast.
        """
        untimed = [image_format for image_format in FORMATS[1:] if image_format not in self._seen]
        if not untimed:
            return
        rng = np.random.default_rng(0)
        slope = np.arange(_PHOTO_SIDE, dtype=np.uint16) // 16
        grain = rng.integers(0, 8, (_PHOTO_SIDE, _PHOTO_SIDE, 3), np.uint8)
        pixels = grain + np.add.outer(slope, slope).astype(np.uint8)[..., None]
        for image_format in untimed:
            side = _PHOTO_SIDE if image_format in ("png", "tiff") else _PHOTO_SIDE // 4
            photo = Photo(pixels[:side, :side], None, Meta(image_format))
            write = partial(encode.encode, photo, image_format)
            with suppress(UnsupportedImage):  # no writer on this platform
                self.learn(image_format, _seconds(write), side * side)

    def learn_from(self, result: Result, pixels: int) -> None:
        """Add the times of a photo.

        pixels  that its network read
        """
        self.learn(result.model, result.stages["enlarge"], pixels)
        if not result.options.max_bytes:  # which takes several encodings
            self.learn(result.format, result.stages["encode"], result.width * result.height)

    def learn(self, name: str, seconds: float, pixels: int) -> None:
        """Add a measurement. Recent photos count more than old ones, large ones more than small ones."""
        old_seconds, old_pixels = self._seen.get(name, (0.0, 1))
        share = max(1 / 4, 1 - 12 * pixels / old_pixels)  # more of it beside a much smaller photo
        self._seen[name] = seconds + old_seconds * share, round(pixels + old_pixels * share)

    def expected(self, name: str, pixels: int) -> float:
        """Return the seconds for that many pixels; 0 if never timed."""
        total_seconds, total_pixels = self._seen.get(name, (0.0, 1))
        return total_seconds / total_pixels * pixels


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
