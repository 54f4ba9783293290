"""The networks that see faces: each loaded when it is first asked for, and run in turn with all else."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import download, models, sources
from ..errors import BadWeights, WeightsUnavailable
from ..tiling import Progress
from . import detect

_PATIENCE = 600  # seconds in which a model that could not be had is not asked for again


class FaceNetworks:
    """Detectors, restorers and parsers by name.

    weights, device, half  as Restorer has them
    running                the lock around the device
    """

    def __init__(
        self, weights: Path, *, device: str | None, half: bool | None, running: threading.Lock
    ) -> None:
        self.loaded: dict[str, Callable] = {}
        self._weights, self._device, self._half, self._running = weights, device, half, running
        self._loading: dict[str, threading.Lock] = {}  # by name: a download keeps no other model waiting
        self._missing: dict[str, tuple[float, WeightsUnavailable | BadWeights]] = {}

    def get(self, name: str, kind: str, *, patient: bool = False, told: Progress | None = None) -> "Turn":
        """The model of that name and kind ("detect", "face", "parse"), downloaded where it is absent.

        patient  raise at once for one that could not be had lately and still is not here
        told     see download.ensure()

        Raises UnknownModel, WeightsUnavailable and BadWeights.
        """
        model = models.find(name, self._weights, kind)
        with self._loading.setdefault(name, threading.Lock()):
            if name not in self.loaded:
                if patient:
                    self._recall(model)
                try:
                    self.loaded[name] = self._load(model, told)
                except (WeightsUnavailable, BadWeights) as error:
                    self._missing[name] = time.monotonic(), error
                    raise
            return Turn(self.loaded[name], self._running)

    def _recall(self, model: models.Model) -> None:
        when, error = self._missing.get(model.name, (0.0, None))
        if error and time.monotonic() - when < _PATIENCE and not sources.is_present(model, self._weights):
            raise error

    def _load(self, model: models.Model, told: Progress | None) -> Callable:
        source = download.ensure(model, self._weights, told)
        if source.path.suffix == ".onnx":
            return detect.YuNet(source.path)
        from .. import backends, loader, networks
        from . import parse, restore, retina

        state = loader.load(source).state
        network = networks.build(networks.recognise_face(state, model.kind, model.name), state, model.name)
        device = backends.pick_device(self._device)
        if model.kind == "detect":
            return retina.RetinaFace(network, device=device)
        if model.kind == "parse":
            return parse.Parser(network, device=device)
        half = device.type == "cuda" if self._half is None else self._half
        return restore.FaceEngine(network, device=device, half=half)


class Turn:
    """A network that waits for its turn on the device.

    batch  how many crops it takes at once
    """

    def __init__(self, network: Callable, running: threading.Lock) -> None:
        self.batch: int = getattr(network, "batch", 1)
        self._network, self._running = network, running

    def __call__(self, given: Any) -> Any:  # noqa: ANN401  each network takes and gives what it does
        with self._running:
            return self._network(given)
