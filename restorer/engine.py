"""One network on one device: an integer tile in, an integer tile out."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from torch import nn

from .errors import InvalidOption, InvalidOutput, OutOfMemory
from .options import SMALLEST_TILE

# Few sizes, so that a little more or less free memory does not change the result. A larger tile wastes less
# on context, but on a CPU it leaves the cache: 256 is the measured best
_TILES = (768, 512, 384, 256, 192, 128, 96, 64, 48, SMALLEST_TILE)
_LARGEST_ON_CPU = 256
# What torch's allocators say where they raise no error class of their own (CPU, MPS, CUDA's runtime)
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator", "out of memory")


def pick_device(name: str | None) -> torch.device:
    """The device of that name ("cuda", "cuda:1", "mps", "cpu"), or the fastest there is for None."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOption(f"device is {name!r}, which this machine does not have") from error
    return device


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

    network  maps (1, 3, h, w) float in [0, 1] to (1, 3, h*scale, w*scale); float32 weights
    scale    what the network multiplies by
    align    its input sides are multiples of this (pixel unshuffle)
    pad      context in pixels that its tiles need
    bytes    working memory for each input pixel in float32
    half     compute in 16-bit floating point; a tile that overflows is done again in float32
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        scale: int,
        device: torch.device,
        align: int = 1,
        pad: int = 0,
        bytes: int = 10_000,
        half: bool = False,
    ) -> None:
        self.scale, self.align, self.pad, self.device = scale, align, pad, device
        self.bytes = bytes // 2 if half else bytes
        self.network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.half_network = copy.deepcopy(self.network).half() if half else None

    def __call__(self, tile: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 or uint16 RGB to (h*scale, w*scale, 3) of the same dtype, rounded.

        Raises OutOfMemory, and InvalidOutput when even float32 gives NaN or Inf.
        """
        with out_of_memory(), torch.inference_mode():
            return self._run(tile)

    def best_tile(self) -> int:
        """Side of a tile in pixels for which half of the free memory suffices, context included."""
        side = math.isqrt(self._free_memory() // 2 // self.bytes) - 2 * self.pad
        side = min(side, _LARGEST_ON_CPU) if self.device.type == "cpu" else side
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
        levels = out[0].permute(1, 2, 0).clamp_(0, 1).mul_(top).round_()
        if top == 255:
            return levels.to(torch.uint8).contiguous().cpu().numpy()
        return levels.to(torch.int32).contiguous().cpu().numpy().astype(tile.dtype)


def _finite(out: torch.Tensor) -> torch.Tensor | None:
    return out if bool(torch.isfinite(out).all()) else None
