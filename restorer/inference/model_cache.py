"""Load each network once and let one thread at a time use the device."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import BadWeights, WeightsUnavailable
from ..models.registry import Model
from ..models.sources import is_present

RETRY_SECONDS = 600  # between attempts to load or download a model that failed


class LockedEngine:
    """A network that any thread may call: it runs under the device's lock.

    batch  number of inputs per call
    """

    def __init__(self, engine: Callable, lock: threading.Lock) -> None:
        self.batch: int = getattr(engine, "batch", 1)
        self._engine, self._lock = engine, lock

    def __call__(self, inputs: Any, /) -> Any:  # noqa: ANN401  depends on the network
        with self._lock:
            return self._engine(inputs)


class ModelCache:
    """Networks by model name, each loaded on first use. Thread-safe.

    loaded  (variant, network) by model name
    """

    def __init__(self, weights: Path) -> None:
        self.loaded: dict[str, tuple[object, Any]] = {}
        self._weights = weights
        self._loading: dict[str, threading.Lock] = {}  # per model: a download blocks no other
        # When, the class of the error, and its arguments: its traceback would keep photos in memory
        self._failed: dict[str, tuple[float, type[WeightsUnavailable | BadWeights], tuple[Any, ...]]] = {}

    def get(
        self, model: Model, load: Callable[[], Any], *, variant: object = None, backoff: bool = False
    ) -> Any:  # noqa: ANN401  what `load` returns
        """Return the network of a model, calling `load` if it is absent or of another variant.

        backoff  for ten minutes after a failure, raise the same error again unless the file has appeared

        Raises WeightsUnavailable and BadWeights.
        """
        if (cached := self.loaded.get(model.name)) and cached[0] == variant:
            return cached[1]
        with self._loading.setdefault(model.name, threading.Lock()):
            cached = self.loaded.get(model.name)  # another thread may have loaded it in the meantime
            if cached is None or cached[0] != variant:
                if backoff:
                    self._raise_recent_failure(model)
                try:
                    cached = self.loaded[model.name] = variant, load()
                except (WeightsUnavailable, BadWeights) as error:
                    self._failed[model.name] = time.monotonic(), type(error), error.args
                    raise
            return cached[1]

    def peek(self, model: Model) -> Any:  # noqa: ANN401  what `load` returned
        """Return the network of a model in any variant, or None if it is not loaded."""
        cached = self.loaded.get(model.name)
        return cached[1] if cached else None

    def _raise_recent_failure(self, model: Model) -> None:
        if model.name in self._failed:
            when, error, arguments = self._failed[model.name]
            if time.monotonic() - when < RETRY_SECONDS and not is_present(model, self._weights):
                raise error(*arguments)
