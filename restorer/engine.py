"""One network on one device: an integer tile in, an integer tile out."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from torch import nn

from .backends import Network
from .errors import InvalidOutput, OutOfMemory
from .options import SMALLEST_TILE

# Few sizes, so that a little more or less free memory does not change the result. A larger tile wastes less
# on context, but on a CPU it leaves the cache: 256 is the measured best. OpenVINO does not mind
_TILES = (768, 512, 384, 256, 192, 128, 96, 64, 48, SMALLEST_TILE)
_LARGEST_ON_CPU, _LARGEST_OF_OPENVINO = 256, 512
_ROWS = 64  # of an answer that a CPU makes into levels at a time: they stay in its cache
# What torch's allocators say where they raise no error class of their own (CPU, MPS, CUDA's runtime)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "out of memory")


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Every way in which memory can run out here becomes OutOfMemory; a GPU's cache is emptied."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory("out of memory") from error
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory("out of GPU memory") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _OUT_OF_MEMORY):
            raise OutOfMemory("out of memory") from error
        raise


class Engine:
    """A super-resolution network, ready to be called on tiles.

    network  maps (1, 3, h, w) float32 in [0, 1] to (1, 3, h*scale, w*scale)
    name     of the device and the way it computes, "cuda" or "cpu:ncnn"
    scale    what the network multiplies by
    align    its input sides are multiples of this (pixel unshuffle)
    pad      context in pixels that its tiles need
    bytes    working memory for each input pixel in float32
    half     compute in 16-bit floating point, for which network is a module of torch; a tile that overflows
             is done again in float32
    """

    def __init__(
        self,
        network: Network,
        *,
        scale: int,
        name: str = "cpu:torch",
        device: torch.device,
        align: int = 1,
        pad: int = 0,
        bytes: int = 10_000,
        half: bool = False,
    ) -> None:
        self.name, self.scale, self.align, self.pad, self.device = name, scale, align, pad, device
        self.bytes = bytes // 2 if half else bytes
        if isinstance(network, nn.Module):
            network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.half_network = copy.deepcopy(network).half() if half else None  # type: ignore[attr-defined]

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 or uint16 RGB to (h*scale, w*scale, 3) of the same dtype, rounded.

        Raises OutOfMemory, and InvalidOutput when even float32 gives NaN or Inf.
        """
        with out_of_memory(), torch.inference_mode():
            return self._run(tile)

    def best_tile(self) -> int:
        """Side of a tile in pixels for which half of the free memory suffices, context included."""
        side = math.isqrt(self._free_memory() // 2 // self.bytes) - 2 * self.pad
        if self.device.type == "cpu":
            side = min(side, _LARGEST_OF_OPENVINO if self.name == "cpu:openvino" else _LARGEST_ON_CPU)
        return next((tile for tile in _TILES if tile <= side), SMALLEST_TILE)

    def _free_memory(self) -> int:
        if self.device.type != "cuda":
            return psutil.virtual_memory().available
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept  # torch keeps what it has freed

    def _run(self, tile: np.ndarray) -> np.ndarray:
        top = int(np.iinfo(tile.dtype).max)
        integers = torch.from_numpy(tile.astype(np.uint8 if top == 255 else np.int32)).to(self.device)
        batch = integers.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.channels_last) / top
        out = None
        if self.half_network is not None:
            out = _finite(self.half_network(batch.half()).float())
        if out is None:
            out = _finite(self.network(batch))
        if out is None:
            raise InvalidOutput("the network gave NaN or infinite values, even in full precision")
        values = out[0].permute(1, 2, 0)
        answer = torch.empty(values.shape, dtype=integers.dtype, pin_memory=self.device.type == "cuda")
        rows = _ROWS if self.device.type == "cpu" else len(values)
        for some, place in zip(values.split(rows), answer.split(rows), strict=True):
            place.copy_(some.contiguous().mul_(top).round_().clamp_(0, top).to(integers.dtype))
        return answer.numpy().astype(tile.dtype, copy=False)


def _finite(out: torch.Tensor) -> torch.Tensor | None:
    least, most = torch.aminmax(out)  # NaN if any is; one pass, where isfinite() takes several
    return out if math.isfinite(least) and math.isfinite(most) else None
