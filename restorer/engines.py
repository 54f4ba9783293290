"""The networks that enlarge: each loaded when it is first asked for, run one tile at a time, and timed."""

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import download, models
from .errors import OutOfMemory
from .tiling import Progress

if TYPE_CHECKING:
    from .engine import Engine

_TIMED = 64  # side of the tile that is timed


class Turns:
    """An engine that runs one tile at a time, whichever thread it belongs to.

    seconds  that the latest tile took, its turn once come
    retries  how many tiles did not fit into memory
    device   that computes it, and in which way: "cuda" or "cpu:ncnn"
    sha256   of the model's file
    """

    seconds = 0.0
    retries = 0

    def __init__(self, engine: "Engine", sha256: str, running: threading.Lock) -> None:
        self.scale, self.align, self.pad = engine.scale, engine.align, engine.pad
        self.best_tile, self.device, self.sha256 = engine.best_tile, engine.name, sha256
        self._engine, self._running = engine, running

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        with self._running:
            start = time.perf_counter()
            try:
                return self._engine(tile)
            except OutOfMemory:
                self.retries += 1
                raise
            finally:
                self.seconds = time.perf_counter() - start


class Engines:
    """The loaded networks, the latest denoise strength of each.

    weights, device, half  as Restorer has them
    running                the lock around the device
    """

    def __init__(
        self, weights: Path, *, device: str | None, half: bool | None, running: threading.Lock
    ) -> None:
        self.loaded: dict[str, tuple[float, Engine, str]] = {}  # by model: denoise strength, itself, sha256
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

    def _build(self, model: models.Model, denoise: float, told: Progress | None) -> tuple["Engine", str]:
        from . import (
            backends,
            engine,
            networks,
        )  # torch takes seconds to import, and a page or --help needs none

        file = download.ensure(model, self._weights, told)
        state = networks.read_state(file)
        shape = networks.recognise(state, model.name)
        if denoise < 1:
            pair = download.ensure(models.find(model.pair, self._weights), self._weights, told)
            state = networks.blend(state, networks.read_state(pair), denoise)
        device = backends.pick_device(self._device)
        half = device.type == "cuda" if self._half is None else self._half
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
            bytes=shape.bytes,
            device=device,
            half=half,
        )
        return made, model.sha256 or download.sha256(file)


class Paces:
    """How fast each model is here, from a tile that was timed and from the photos since."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}  # by model: seconds for so many pixels of tiles

    def __contains__(self, model: str) -> bool:
        return model in self._seen

    def learn(self, model: str, seconds: float, pixels: int) -> None:
        """The latest photo counts most, and a large one more than a small one."""
        before, seen = self._seen.get(model, (0.0, 0))
        self._seen[model] = seconds + before / 4, pixels + seen // 4

    def time(self, model: str, engine: Turns) -> None:
        """Time small tiles: the first of all warms up, and of the others the fastest was disturbed least."""
        tile = np.random.default_rng(0).integers(0, 256, (_TIMED, _TIMED, 3), np.uint8)
        engine(tile)
        seconds = []
        for _ in range(3):
            engine(tile)
            seconds.append(engine.seconds)
        self.learn(model, min(seconds), _TIMED * _TIMED)

    def expected(self, model: str, pixels: int) -> float:
        """Seconds for so many pixels of tiles."""
        seconds, seen = self._seen[model]
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
