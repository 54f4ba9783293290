"""A network on a GPU as CUDA graphs: its kernels are recorded once and launched together.

RealESRGAN_x4plus is more than a thousand kernels for a tile, and a fast GPU may have computed a small one
before a processor has launched them all.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import torch

from .backends import Network

_KEPT = 2  # shapes whose recordings are held; each holds the working memory of its shape
_WATCHED = 100  # shapes of which is known whether recording pays
_PAYS = 0.5  # part of the time that goes by until the last kernel is launched, from which on it does
_FAR = 0.01  # by which a recording may differ from the network: 16-bit numbers near 1 are 0.001 apart


class Graphs:
    """Calls `network`, for shapes that come again and again by a recording of it.

    A shape is run by the network twice; the second time is timed. Where launching took half of that or more,
    the third is recorded and compared with the network's own answer. Where recording fails, or an answer
    differs, the log says so and the network alone is used from then on.

    network      maps a tensor to another whose shape follows from the first's; always the same kernels
    record       (network, an example) to what runs it again for other values, its answer being overwritten by
                 the next
    synchronise  waits until all that was launched is done
    """

    def __init__(
        self,
        network: Network,
        *,
        record: Callable[[Network, torch.Tensor], Network] | None = None,
        synchronise: Callable[[], None],
    ) -> None:
        self._network = network
        self._record, self._synchronise = record or recorded, synchronise
        self._kept: OrderedDict[torch.Size, Network] = OrderedDict()
        self._pays: OrderedDict[torch.Size, bool | None] = OrderedDict()  # None: seen once
        self._off = False

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        shape = batch.shape
        if shape in self._kept:
            self._kept.move_to_end(shape)
            return self._kept[shape](batch)
        if self._off or self._pays.get(shape) is False:
            return self._network(batch)
        if shape not in self._pays:
            self._pays[shape] = None
            if len(self._pays) > _WATCHED:
                self._pays.popitem(last=False)
            return self._network(batch)
        if self._pays[shape] is None:
            return self._timed(batch)
        return self._recorded(batch)

    def forget(self) -> bool:
        """Give back the memory of all recordings; whether there were any."""
        held = bool(self._kept)
        if held:
            self._synchronise()
            self._kept.clear()
        return held

    def _timed(self, batch: torch.Tensor) -> torch.Tensor:
        self._synchronise()
        start = time.perf_counter()
        out = self._network(batch)
        launched = time.perf_counter()
        self._synchronise()
        self._pays[batch.shape] = launched - start >= _PAYS * (time.perf_counter() - start)
        return out

    def _recorded(self, batch: torch.Tensor) -> torch.Tensor:
        expected = self._network(batch)
        if len(self._kept) >= _KEPT:
            self._synchronise()
            self._kept.popitem(last=False)
        try:
            again = self._record(self._network, batch)
            if torch.allclose(again(batch), expected, rtol=_FAR, atol=_FAR, equal_nan=True):
                self._kept[batch.shape] = again
                return expected
            reason = "a recording gave another answer"
        except torch.OutOfMemoryError:
            self._pays[batch.shape] = False
            return expected
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        self._off = True
        self.forget()
        logging.getLogger(__name__).warning("CUDA graphs are not used: %s", reason)
        return expected


def recorded(network: Network, example: torch.Tensor) -> Network:
    """The network recorded as a CUDA graph. Raises RuntimeError where that cannot be done."""
    device = example.device
    given, stream, graph = example.clone(), torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        # other threads may use the GPU meanwhile
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = network(given)

    def again(batch: torch.Tensor) -> torch.Tensor:
        given.copy_(batch)
        graph.replay()
        return out

    return again
