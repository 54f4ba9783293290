"""The order of the rooms: decode, choose a network, enlarge, encode. Read this first."""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import download, encode, models, photo
from .errors import ImageTooLarge, InvalidOption, OutOfMemory
from .options import Limits, Options
from .photo import Photo
from .tiling import Progress
from .upscale import output_size, upscale

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Result:
    """A restored photo.

    data           the file's bytes, in `format` ("png", "jpeg", ...)
    width, height  in pixels
    model          the one that was used, by name
    seconds        from bytes to bytes, loading the model included where it was not loaded yet
    warnings       what could not be kept or was decided on the way, in the user's words
    before, after  the decoded input and the picture that `data` holds
    """

    data: bytes
    format: str
    width: int
    height: int
    model: str
    seconds: float
    warnings: tuple[str, ...]
    before: Photo
    after: Photo


class Restorer:
    """Owns the networks, the device and the one lock around the device.

    weights  folder of the model files (default: RESTORER_WEIGHTS, else weights/ beside the package)
    device   "cuda", "mps", "cpu", or None for the fastest there is
    half     compute in 16 bit; None: on CUDA only
    limits   how large photos may be
    options  defaults for restore(), see Options

    Nothing is loaded until it is needed. One Restorer serves any number of threads; no two tiles are
    ever computed at once.
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        half: bool | None = None,
        limits: Limits | None = None,
        **options: object,
    ) -> None:
        self.weights = models.weights_folder(weights)
        self.limits = limits or Limits()
        self.options = _changed(Options(), options)
        self._device, self._half = device, half
        self._engines: dict[str, tuple[float, Engine]] = {}  # by model: its denoise strength, and itself
        self._loading, self._running = threading.Lock(), threading.Lock()

    def restore(self, data: bytes, *, progress: Progress | None = None, **options: object) -> Result:
        """Restore the photo in `data` (a file's bytes).

        options   see Options; what is not given is as it was given to the Restorer
        progress  is told (tiles done, tiles in all) before the first tile and after each one. When it
                  raises (Cancelled, say), the work stops within one tile

        Raises any RestoreError; see errors.py.
        """
        try:
            return self._restore(data, progress, options)
        except MemoryError as error:
            raise OutOfMemory(
                "the photo and its result do not fit into memory: choose a smaller scale"
            ) from error

    def _restore(self, data: bytes, progress: Progress | None, options: dict[str, object]) -> Result:
        start = time.perf_counter()
        chosen = _changed(self.options, options)
        before = photo.decode(data, max_pixels=self.limits.input_pixels)
        self.result_size(before, chosen)
        model = self.model(chosen)
        engine = self._engine(model, chosen.denoise)
        tile = chosen.tile or engine.best_tile()
        after = upscale(
            before, _Turns(engine, self._running), outscale=chosen.outscale, tile=tile, progress=progress
        )
        encoded = encode.encode(
            after,
            encode.output_format(before, chosen.format),
            quality=chosen.quality,
            keep_metadata=chosen.keep_metadata,
            remove_gps=chosen.remove_gps,
        )
        return Result(
            data=encoded.data,
            format=encoded.format,
            width=after.width,
            height=after.height,
            model=model.name,
            seconds=time.perf_counter() - start,
            warnings=before.meta.warnings + encoded.warnings,
            before=before,
            after=after,
        )

    def result_size(self, before: Photo, options: Options) -> tuple[int, int]:
        """Width and height of the result. Raises ImageTooLarge beyond the limit or what the format holds."""
        width, height = output_size(before.width, before.height, options.outscale)
        if width * height > self.limits.output_pixels:
            raise ImageTooLarge(
                f"the result would have {width} x {height} = {width * height / 1e6:.1f} megapixels; "
                f"the limit is {self.limits.output_pixels / 1e6:.1f}: choose a smaller scale"
            )
        encode.check_fits(before, width, height, encode.output_format(before, options.format))
        return width, height

    def model(self, options: Options) -> models.Model:
        """The model these options mean. Raises UnknownModel."""
        if options.model == "auto":
            return models.choose(self.weights, options.outscale, options.denoise)
        return models.find(options.model, self.weights)

    def load(self) -> "Restorer":
        """Load the default model now: the first photo then waits for nothing. Returns itself."""
        self._engine(self.model(self.options), self.options.denoise)
        return self

    def _engine(self, model: models.Model, denoise: float) -> "Engine":
        if denoise < 1 and not model.pair:
            raise InvalidOption(
                f"denoise is {denoise}, but {model.name} has no strength to choose: leave it at 1"
            )
        loaded = self._engines.get(model.name)
        if loaded is None or loaded[0] != denoise:
            with self._loading:
                loaded = self._engines.get(model.name)  # another thread may have loaded it while we waited
                if loaded is None or loaded[0] != denoise:
                    loaded = self._engines[model.name] = denoise, self._build(model, denoise)
        return loaded[1]

    def _build(self, model: models.Model, denoise: float) -> "Engine":
        from . import engine, networks  # torch takes seconds to import, and a page or --help needs none

        state = networks.read_state(download.ensure(model, self.weights))
        shape = networks.recognise(state, model.name)
        if denoise < 1:
            pair = networks.read_state(download.ensure(models.find(model.pair, self.weights), self.weights))
            state = networks.blend(state, pair, denoise)
        device = engine.pick_device(self._device)
        return engine.Engine(
            networks.build(shape, state, model.name),
            scale=shape.scale,
            align=shape.align,
            pad=shape.pad,
            bytes=shape.bytes,
            device=device,
            half=device.type == "cuda" if self._half is None else self._half,
        )


class _Turns:
    """An engine that runs one tile at a time, whichever thread it belongs to."""

    def __init__(self, engine: "Engine", lock: threading.Lock) -> None:
        self.scale, self.align, self.pad = engine.scale, engine.align, engine.pad
        self._engine, self._lock = engine, lock

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._engine(tile)


def load(
    model: str = Options.model,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    half: bool | None = None,
    limits: Limits | None = None,
    **options: object,
) -> Restorer:
    """A Restorer with its model loaded. The arguments are those of Restorer; options those of Options."""
    restorer = Restorer(weights=weights, device=device, half=half, limits=limits, model=model, **options)
    return restorer.load()


def _changed(options: Options, changes: dict[str, object]) -> Options:
    unknown = sorted(set(changes) - set(Options.names()))
    if unknown:
        raise InvalidOption(
            f"there is no option {unknown[0]!r}; the options are {', '.join(Options.names())}"
        )
    return replace(options, **changes)  # type: ignore[arg-type]
