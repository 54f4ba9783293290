"""A network on a GPU as CUDA graphs: its kernels are captured once and launched together.

RealESRGAN_x4plus is more than a thousand kernels for a tile, and a fast GPU may have computed a small one
before a processor has launched them all.
"""

import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .backends import Network

_KEPT = 2  # shapes whose graphs are held; each holds the working memory of its shape
_KNOWN = 100  # shapes of which is remembered whether a graph pays
_PAYS = 0.5  # part of the time that goes by until the last kernel is launched, from which on it does
_FAR = 0.01  # by which a graph's answer may differ from the network's: float16 is 0.001 apart near 1
_ALL: "weakref.WeakSet[Graphs]" = weakref.WeakSet()
_LOCK = threading.RLock()  # graphs of one engine are given up for another


class Graphs:
    """Calls `network`, for shapes that come again and again by a CUDA graph of it.

    A shape is run by the network twice; the second time it is also timed. Where launching took half of that
    or more, the third is captured and compared with the network's own answer. Where capture fails, or an
    answer differs, the log says so and the network alone is used from then on. A shape whose graph was given
    up is not captured again soon. Under a TorchDispatchMode, which counts operations, the network is called.

    network      maps a tensor (n, 3, h, w) to another whose shape follows from the first's; always the same
                 kernels
    capture      (network, an example) to what replays it for other values, its answer being overwritten by
                 the next
    synchronise  waits until all that was launched is done
    """

    def __init__(
        self,
        network: Network,
        *,
        capture: Callable[[Network, torch.Tensor], Network] | None = None,
        synchronise: Callable[[], None],
    ) -> None:
        self._network = network
        self._capture, self._synchronise = capture or captured, synchronise
        self._kept: OrderedDict[torch.Size, Network] = OrderedDict()
        self._pays: OrderedDict[torch.Size, bool | None] = OrderedDict()  # None: seen once
        self._off = False
        with _LOCK:
            _ALL.add(self)

    @property
    def pixels(self) -> int:
        """Of the pictures whose working memory is held."""
        return sum(shape[0] * shape[2] * shape[3] for shape in tuple(self._kept))

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        shape = batch.shape
        with _LOCK:
            if self._off or is_in_torch_dispatch_mode():
                return self._network(batch)
            if shape in self._kept:
                self._kept.move_to_end(shape)
                return self._kept[shape](batch)
            if shape not in self._pays:
                self._know(shape, None)
            elif self._pays[shape] is None:
                self._know(shape, self._launching_is_long(batch))
            elif self._pays[shape]:
                return self._captured(batch)
            return self._network(batch)

    def forget(self) -> bool:
        """Give back the memory of all graphs; whether there were any."""
        with _LOCK:
            if not self._kept:
                return False
            self._synchronise()
            while self._kept:
                self._drop()
            return True

    def _know(self, shape: torch.Size, pays: bool | None) -> None:
        self._pays[shape] = pays
        if len(self._pays) > _KNOWN:
            self._pays.popitem(last=False)

    def _drop(self) -> None:
        shape, _ = self._kept.popitem(last=False)
        self._know(shape, False)

    def _launching_is_long(self, batch: torch.Tensor) -> bool:
        """Timed when this thread has run it before: the first time cuDNN makes its plans, for each thread."""
        self._network(batch)
        self._synchronise()
        start = time.perf_counter()
        self._network(batch)
        launched = time.perf_counter()
        self._synchronise()
        return launched - start >= _PAYS * (time.perf_counter() - start)

    def _captured(self, batch: torch.Tensor) -> torch.Tensor:
        expected = self._network(batch)
        if len(self._kept) >= _KEPT:
            self._synchronise()
            self._drop()
        try:
            replay = self._capture(self._network, batch)
            if torch.allclose(replay(batch), expected, rtol=_FAR, atol=_FAR, equal_nan=True):
                self._kept[batch.shape] = replay
                return expected
            reason = "a replay gave another answer"
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                self._know(batch.shape, False)
                return expected
            reason = str(error).partition("\n")[0]
        self._off = True
        self.forget()
        logging.getLogger(__name__).warning("CUDA graphs are not used: %s", reason)
        return expected


def forget() -> bool:
    """Give back the memory of all graphs of all networks; whether there were any."""
    with _LOCK:
        return any([graphs.forget() for graphs in _ALL])


def captured(network: Network, example: torch.Tensor) -> Network:
    """The network captured as a CUDA graph. Raises RuntimeError where that cannot be done."""
    device = example.device
    given, graph = torch.zeros_like(example), torch.cuda.CUDAGraph()
    current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    # Where capture fails PyTorch may leave its own stream the current one: so that of before is set again.
    # Other threads may use the GPU meanwhile
    with (
        torch.cuda.stream(current),
        torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
    ):
        out = network(given)

    def replay(batch: torch.Tensor) -> torch.Tensor:
        given.copy_(batch)
        graph.replay()
        return out

    return replay
