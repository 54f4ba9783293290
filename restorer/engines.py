"""The networks that enlarge: each loaded when it is first asked for, run in turn, and timed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import download, encode, models
from .errors import InvalidOption, OutOfMemory
from .options import BFLOAT16, FORMATS, Options
from .photo import Meta, Photo
from .tiling import Answers, Progress

if TYPE_CHECKING:
    from .engine import Engine

_TIMED, _TIMED_ON_GPU = 64, 512  # side of the tile that is timed: a small one keeps no GPU busy
_WRITTEN = 1536  # side of the picture that is written to time it


class Turns:
    """An engine that is given its work in turn, whichever thread it comes from.

    seconds  that the latest tiles took, their turn once come
    retries  how often tiles did not fit into memory
    device   that computes it, and in which way: "cuda" or "cpu:ncnn"
    sha256   of the bytes that the weights were read from
    source   the kind of their source, see sources.py
    """

    seconds = 0.0
    retries = 0

    def __init__(self, engine: "Engine", sha256: str, source: str, running: threading.Lock) -> None:
        self.scale, self.align, self.pad = engine.scale, engine.align, engine.pad
        self.best_tile, self.asynchronous = engine.best_tile, engine.asynchronous
        self.device, self.sha256, self.source = engine.name, sha256, source
        self._engine, self._running = engine, running

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        return self.start(tile[None])()[0]

    def start(self, tiles: np.ndarray) -> Answers:
        """As Engine's. Other threads have their turn while a GPU is waited for."""
        with self._running, self._counted():
            begun = time.perf_counter()
            wait = self._engine.start(tiles)

        def answers() -> np.ndarray:
            with self._counted():
                found = wait()
            self.seconds = time.perf_counter() - begun
            return found

        return answers

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except OutOfMemory:
            self.retries += 1
            raise


class Engines:
    """The loaded networks, the latest denoise strength of each.

    weights, device, half  as Restorer has them
    running                the lock around the device
    """

    def __init__(
        self, weights: Path, *, device: str | None, half: bool | None, running: threading.Lock
    ) -> None:
        # by model: denoise strength, itself, sha256 and source of its weights
        self.loaded: dict[str, tuple[float, Engine, str, str]] = {}
        self._weights, self._device, self._half, self._running = weights, device, half, running
        self._loading = threading.Lock()

    def get(self, model: models.Model, denoise: float, told: Progress | None = None) -> Turns:
        """The model's network, downloaded where its file is absent.

        told  see download.ensure()

        Raises WeightsUnavailable and BadWeights. A denoise below 1 needs a model that has a pair.
        """
        found = self.loaded.get(model.name)
        if found is None or found[0] != denoise:
            with self._loading:
                found = self.loaded.get(model.name)  # another thread may have loaded it while we waited
                if found is None or found[0] != denoise:
                    found = self.loaded[model.name] = denoise, *self._build(model, denoise, told)
        return Turns(*found[1:], self._running)

    def peek(self, model: models.Model) -> Turns | None:
        """The model's network with whatever denoise strength, if it is loaded."""
        found = self.loaded.get(model.name)
        return None if found is None else Turns(*found[1:], self._running)

    def _build(self, model: models.Model, denoise: float, told: Progress | None) -> tuple["Engine", str, str]:
        # here, as importing torch takes seconds and a page or --help does not need it
        from . import backends, engine, loader, networks

        weights = loader.load(download.ensure(model, self._weights, told))
        state = weights.state
        shape = networks.recognise(state, model.name)
        if denoise < 1:
            pair = download.ensure(models.find(model.pair, self._weights), self._weights, told)
            state = networks.blend(state, loader.load(pair).state, denoise)
        device = backends.pick_device(self._device)
        half = device.type == "cuda" if self._half is None else self._half
        if self._device in backends.NAMES and (half or (self._device == BFLOAT16 and self._half is False)):
            raise InvalidOption(f"{self._device} has a precision of its own: leave out half or --fp32")
        if device.type != "cpu" or half:
            network, name = networks.build(shape, state, model.name), str(device)
        else:
            with self._running:  # ways are timed: nothing else may run
                network, name = backends.network(self._device or "cpu", shape, state, model.name)
        made = engine.Engine(
            network,
            name=name,
            scale=shape.scale,
            align=shape.align,
            pad=shape.pad,
            bytes=round(shape.bytes * backends.APPETITE.get(name, 1)),
            device=device,
            half=half,
            running=self._running,
        )
        return made, weights.sha256, weights.kind


class Paces:
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

    def time(self, model: str, engine: Turns) -> None:
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


class Laps:
    """The seconds of one stage after the other, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """The stage of that name ends here, and the next begins."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
