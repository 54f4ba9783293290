"""Find damage in a photo and fill it, in tiles that each see everything their core depends on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import safetensors.torch
import torch
from torch.nn import functional

from ..inference.engine import without_tf32
from ..inference.memory import out_of_memory
from ..progress import Progress
from .networks import STRIDE, Detector, Filler

TILE = 1536  # pixels, a multiple of STRIDE
_DILATION = 2  # pixels around detected damage, whose soft edges are damage too; as in training
# What counts as seen with confidence: 24 undamaged photographs have none (`python -m bench.repair`)
_SURE = 0.9995  # probability that part of a damaged area reaches
# Share of an area's pixels above 0.5 that are above _LIKELY; it was 0.24 for a twig
_LIKELY, _SHARE = 0.95, 1 / 3
_THICKNESS = 24  # pixels; wider areas were clouds and flowers more often than damage
Network = TypeVar("Network", Detector, Filler)


def load(network: Network, file: Path, device: torch.device) -> Network:
    """Load float16 weights into a network for inference in float32; move it to the device."""
    network.load_state_dict(safetensors.torch.load_file(file), strict=True)
    return network.eval().requires_grad_(False).to(device)


def detect(
    image: np.ndarray,
    detector: Detector,
    *,
    single: bool = False,
    tile: int = TILE,
    lock: AbstractContextManager[object] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the probability (h, w) float32, 0..1, that a pixel is damaged.

    image     (h, w, 3) uint8 or uint16 RGB
    single    run the detector once, in a quarter of the time and less accurately, instead of averaging the
              logits of the photo turned by 0, 90, 180 and 270 degrees
    tile      side in pixels, a multiple of STRIDE; changes memory, not the result
    lock      held while a tile is computed
    progress  called with (0, 0) before each tile, see Restorer.restore(); it may raise

    Raises OutOfMemory.
    """
    device = next(detector.parameters()).device
    result = np.empty(image.shape[:2], np.float32)
    for window, inner, core in _tiles(image.shape[:2], tile, detector.reach):
        if progress:
            progress(0, 0)
        with lock or nullcontext(), out_of_memory(), without_tf32(device), torch.inference_mode():
            photo = _padded(_tensor(image[window], device))
            # Recall at a precision of 0.70: 0.78 with one view, 0.81 with four, 0.82 with mirrored ones too
            turns = range(1 if single else 4)
            logits = [detector(photo.rot90(turn, (2, 3))).rot90(-turn, (2, 3)) for turn in turns]
            result[core] = torch.cat(logits).mean((0, 1)).sigmoid().cpu().numpy()[inner]
    return result


def mask(probability: np.ndarray, sensitivity: float, *, confident: bool = False) -> np.ndarray:
    """Return the pixels to fill (h, w) bool: likely damage, see chosen(), and its edges."""
    size = 2 * _DILATION + 1
    marked = chosen(probability, sensitivity, confident=confident).astype(np.uint8)
    return cv2.dilate(marked, np.ones((size, size), np.uint8)).astype(bool)


def chosen(probability: np.ndarray, sensitivity: float, *, confident: bool = False) -> np.ndarray:
    """Return the pixels (h, w) bool that are taken for damage.

    probability  (h, w) float32, as detect() returns it
    sensitivity  0..1; a pixel is taken if its probability is above 1 - sensitivity
    confident    take only thin areas that are likely damage in large part and almost certainly somewhere
    """
    marked = (probability > 1 - sensitivity).astype(np.uint8)
    if confident:
        count, areas = cv2.connectedComponents(marked, connectivity=8)
        depth = cv2.distanceTransform(marked, cv2.DIST_L2, 3)
        certain, likely, probable = (
            np.bincount(areas[probability > limit], minlength=count) for limit in (_SURE, _LIKELY, 0.5)
        )
        sure = (certain > 0) & (likely >= _SHARE * probable)
        thin = np.bincount(areas[depth > _THICKNESS / 2], minlength=count) == 0
        marked *= (sure & thin)[areas]
    return marked.astype(bool)


def fill(
    image: np.ndarray,
    mask: np.ndarray,
    filler: Filler,
    *,
    tile: int = TILE,
    lock: AbstractContextManager[object] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the image with the mask's pixels filled and all others unchanged, of the same dtype.

    image  (h, w, 3) uint8 or uint16 RGB
    mask   (h, w) bool

    The other arguments, and what it raises, are those of detect().
    """
    device = next(filler.parameters()).device
    white = np.iinfo(image.dtype).max
    result = image.copy()
    for window, inner, core in _tiles(image.shape[:2], tile, filler.reach):
        holes = mask[core]
        if not holes.any():
            continue
        if progress:
            progress(0, 0)
        with lock or nullcontext(), out_of_memory(), without_tf32(device), torch.inference_mode():
            hole = torch.from_numpy(mask[window].astype(np.float32))[None, None].to(device)
            filled = filler(_padded(_tensor(image[window], device)), _padded(hole))[0]
            pixels = filled.clamp(0, 1).mul(white).round().permute(1, 2, 0).cpu().numpy()[inner]
        result[core][holes] = pixels[holes].astype(image.dtype)
    return result


Slices = tuple[slice, slice]


def _tiles(shape: tuple[int, ...], tile: int, reach: int) -> Iterator[tuple[Slices, Slices, Slices]]:
    """Yield each tile's window, its core within the window, and its core within the image."""
    spans = [list(_spans(length, tile, reach)) for length in shape]
    for rows in spans[0]:
        for columns in spans[1]:
            window, inner, core = zip(rows, columns, strict=True)
            yield window, inner, core


def _spans(length: int, tile: int, reach: int) -> Iterator[tuple[slice, slice, slice]]:
    for start in range(0, length, tile):
        end = min(start + tile, length)
        first, last = max(start - reach, 0), min(end + reach, length)
        yield slice(first, last), slice(start - first, end - first), slice(start, end)


def _tensor(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return (h, w, 3) uint8 or uint16 as (1, 3, h, w) float32 in 0..1."""
    scaled = image.astype(np.float32) / np.iinfo(image.dtype).max
    return torch.from_numpy(scaled).to(device).permute(2, 0, 1)[None]


def _padded(batch: torch.Tensor) -> torch.Tensor:
    """Repeat the last row and column up to multiples of STRIDE."""
    height, width = batch.shape[2:]
    return functional.pad(batch, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
