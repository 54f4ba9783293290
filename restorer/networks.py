"""Choose, download and load the networks of a Restorer."""

import functools
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import BadWeights, InvalidOption, WeightsUnavailable
from .faces import networks as face_networks
from .inference.model_cache import RETRY_SECONDS, LockedEngine, ModelCache
from .models import download, registry, selection
from .options import VULKAN, Options
from .progress import Progress
from .repair import pipeline as repair

if TYPE_CHECKING:
    from .inference.engine import Engine

T = TypeVar("T")


class Networks:
    """Networks, each loaded when first needed; owns the device and the lock around it. Thread-safe.

    Arguments are those of Restorer.

    cache          the networks that are loaded
    downloading    model, bytes so far and total bytes of a download
    repair_device  of the networks that find and fill damage
    """

    def __init__(
        self,
        weights: str | Path | None,
        device: str | None,
        half: bool | None,
        auto_cpu_megapixels: float | None,
    ) -> None:
        self.weights = registry.weights_folder(weights)
        self.auto_cpu_megapixels = selection.auto_cpu_megapixels(auto_cpu_megapixels)
        self.lock = threading.Lock()
        self.downloading: tuple[str, int, int] | None = None
        self.repair_device = self._device = device
        self._half = half
        self._download_failed = -math.inf  # time.monotonic() when "auto" last failed to download its model
        self.cache = ModelCache(self.weights)

    def model(self, options: Options, pixels: int = 0) -> registry.Model:
        """Return the model that these options upscale with.

        pixels  of the photo; on a CPU, "auto" uses a faster model for large photos

        Raises UnknownModel, also for the face models, and InvalidOption if it does not support denoise.
        """
        registry.find(options.face_model, self.weights, "face")
        registry.find(options.face_detector, self.weights, "detect")
        if options.model == "fast":
            return selection.fast(self.weights, options)
        if self.is_large(options, pixels):
            fetch = time.monotonic() - self._download_failed > RETRY_SECONDS and not download.offline()
            return selection.large_photo_model(self.weights, options, fetch=fetch)
        if options.model in ("auto", "best"):
            return selection.best(self.weights, options, fetch=options.model == "best")
        model = registry.find(options.model, self.weights)
        if options.denoise < 1 and not model.denoise_model:
            raise InvalidOption(f"{model.name} does not support denoise {options.denoise}; use 1")
        return model

    def resolve(
        self, options: Options, pixels: int, load: Callable[[registry.Model], T]
    ) -> tuple[registry.Model, T]:
        """Return the model of these options and what `load` returns for it.

        If the model of "auto" cannot be downloaded, it uses the built-in one and does not try again for ten
        minutes. Raises what model() and `load` raise.
        """
        model = self.model(options, pixels)
        try:
            return model, load(model)
        except (WeightsUnavailable, BadWeights):
            if not self.is_large(options, pixels):
                raise
            self._download_failed = time.monotonic()
            fallback = self.model(options, pixels)
            if fallback == model:
                raise
            return fallback, load(fallback)

    def is_large(self, options: Options, pixels: int) -> bool:
        """Return whether "auto" uses a faster model because of the photo's size."""
        large = options.model == "auto" and pixels > self.auto_cpu_megapixels * 1e6
        return large and not self._on_gpu

    @functools.cached_property
    def _on_gpu(self) -> bool:
        if self._device and self._device.startswith("cpu"):
            return False
        from .inference import backends  # torch

        return self._device == VULKAN or backends.pick_device(self._device).type != "cpu"

    def upscaler(self, model: registry.Model, denoise: float, progress: Progress | None = None) -> "Engine":
        """Return a model's network, which takes the lock itself. Raises WeightsUnavailable and BadWeights.

        progress  called with (0, 0) during a download; `downloading` has the bytes so far
        """

        def load(on_download: Progress) -> "Engine":
            from .inference import engine

            return engine.load(
                model,
                self.weights,
                device=self._device,
                half=self._half,
                denoise=denoise,
                lock=self.lock,
                progress=on_download,
            )

        return self._get(model, load, progress, variant=denoise)

    def _get(
        self,
        model: registry.Model,
        load: Callable[[Progress], Any],
        progress: Progress | None,
        *,
        variant: object = None,
        backoff: bool = False,
    ) -> Any:  # noqa: ANN401  what `load` returns
        """Return a network from the cache, or load it.

        progress  of the job that waits for it, whose download is in `downloading` meanwhile
        """

        def on_download(done: int, total: int) -> None:
            if progress:
                self.downloading = (model.name, done, total) if done < total else None
                progress(0, 0)

        try:
            return self.cache.get(model, partial(load, on_download), variant=variant, backoff=backoff)
        finally:
            if progress:
                self.downloading = None  # also after a failed download

    def loaded_upscaler(self, model: registry.Model) -> "Engine | None":
        """Return the model's network if it is loaded, with any denoise strength."""
        return self.cache.peek(model)

    def face_network(
        self, name: str, kind: str, *, backoff: bool = False, progress: Progress | None = None
    ) -> LockedEngine:
        """Return a network of the faces' stages. Raises UnknownModel, WeightsUnavailable and BadWeights.

        kind      "detect", "parse" or "face", see registry.Model
        backoff   see ModelCache.get()
        progress  see upscaler()
        """
        model = registry.find(name, self.weights, kind)

        def load(on_download: Progress) -> Callable:
            return face_networks.load(
                model, self.weights, device=self._device, half=self._half, progress=on_download
            )

        return LockedEngine(self._get(model, load, progress, backoff=backoff), self.lock)

    def face_restoration(
        self, chosen: Options, progress: Progress | None
    ) -> tuple[LockedEngine, LockedEngine | None]:
        """Return the network that restores faces and, for face_mask="parsing", the one that outlines them."""
        get = partial(self.face_network, backoff=chosen.face_enhance == "auto", progress=progress)
        masks = get("parsenet", "parse") if chosen.face_mask == "parsing" else None
        return get(chosen.face_model, "face"), masks

    def repair_network(self, name: str) -> Any:  # noqa: ANN401  a torch module
        """Return the network of this name, see repair. Raises WeightsUnavailable and BadWeights."""
        model = registry.find(name, self.weights, "damage" if name == repair.DETECTOR else "fill")
        return self.cache.get(model, partial(repair.load, model, self.weights, self.repair_device))
