"""Fill holes that are too wide for the filler with LaMa, which sees a crop at once and continues structures.

Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, 2022. The file is a
TorchScript program: it maps photos (N, 3, h, w) RGB in 0..1 and masks (N, 1, h, w), 1 where a pixel is to be
filled and else 0, to photos with the mask filled, float32; h and w are multiples of 8.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import BadWeights, InvalidOutput
from ..inference.engine import without_tf32
from ..inference.memory import out_of_memory
from ..progress import Progress

WIDTH = 60  # pixels; the filler blurs wider holes
_EDGE = 4  # pixels of narrow damage beside a wide hole that are filled with it
_CONTEXT = 128  # pixels around a hole, at least
_SIDE = 1024  # largest side of a crop; larger ones are computed on a smaller scale
_MULTIPLE, _LEAST = 8, 16  # sides of an input; reflection at 1/8 of the resolution needs two pixels


class Lama:
    """The network; called with (h, w, 3) uint8 or uint16 RGB and (h, w) bool, it returns the filled photo."""

    def __init__(self, file: Path, device: torch.device) -> None:
        """Load the file. Raises BadWeights if it is not a TorchScript program."""
        # Of what LaMa needs, PyTorch lacks parts on Apple GPUs and computes others wrongly
        self.device = torch.device("cpu") if device.type == "mps" else device
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch recommends its successor; the file stays as it is
                self._program = torch.jit.load(str(file), map_location="cpu").eval().to(self.device)
        except RuntimeError as error:
            raise BadWeights(f"{file.name} is not a TorchScript program") from error

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        white, (height, width) = np.iinfo(image.dtype).max, mask.shape
        bottom, right = (max(_LEAST, side + -side % _MULTIPLE) - side for side in (height, width))
        photo = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge").astype(np.float32) / white
        hole = np.pad(mask, ((0, bottom), (0, right)), mode="edge").astype(np.float32)[..., None]
        planes = (torch.from_numpy(part).to(self.device).permute(2, 0, 1)[None] for part in (photo, hole))
        # Optimised for the shapes of its first calls, the program takes seconds for these on a GPU
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            try:
                with out_of_memory():
                    output = self._program(*planes)[0, :, :height, :width].float()
            except (RuntimeError, torch.jit.Error) as error:
                logging.getLogger(__name__).warning("big-lama failed: %s", error)  # pages of it, with paths
                raise InvalidOutput("big-lama failed") from error
        if not output.isfinite().all():
            raise InvalidOutput("big-lama returned NaN or infinite values")
        return (output.clamp(0, 1) * white).round().permute(1, 2, 0).cpu().numpy().astype(image.dtype)


def select(mask: np.ndarray) -> np.ndarray:
    """Return the parts of a mask (h, w) bool that are wider than WIDTH, without narrow parts beside them."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    cores = depth[1:-1, 1:-1] > WIDTH / 2
    if not cores.any():
        return cores
    distance = cv2.distanceTransform((~cores).astype(np.uint8), cv2.DIST_C, 3)  # to corners as to edges
    return mask & (distance <= WIDTH / 2 + _EDGE)


def fill(
    image: np.ndarray,
    holes: np.ndarray,
    unknown: np.ndarray,
    network: Lama,
    *,
    lock: AbstractContextManager[object] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the image with the holes filled, each connected one on its own, and all else unchanged.

    image     (h, w, 3) uint8 or uint16 RGB
    holes     (h, w) bool
    unknown   (h, w) bool: the holes and other damage; the network does not see these pixels
    lock      held while a hole is computed
    progress  called with (0, 0) before each hole, see Restorer.restore(); it may raise

    Raises OutOfMemory, and InvalidOutput if the network fails or nothing around a hole is known.
    """
    result = image.copy()
    for crop, hole in _holes(holes):
        if progress:
            progress(0, 0)
        with lock or nullcontext(), out_of_memory(), without_tf32(network.device):
            filled = _filled(image[crop], unknown[crop], network)
        result[crop][hole] = filled[hole]
    return result


def _holes(mask: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yield a crop around each connected hole, and the hole in it."""
    _, holes, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for number, (left, top, width, height, _) in enumerate(boxes[1:], 1):
        context = max(_CONTEXT, width // 2, height // 2)
        rows = slice(max(top - context, 0), top + height + context)
        columns = slice(max(left - context, 0), left + width + context)
        yield (rows, columns), holes[rows, columns] == number


def _filled(image: np.ndarray, unknown: np.ndarray, network: Lama) -> np.ndarray:
    """Fill a crop, on a smaller scale if it is large."""
    height, width = unknown.shape
    shrink = max(height, width) / _SIDE
    if shrink > 1:
        size = max(1, round(width / shrink)), max(1, round(height / shrink))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        unknown = cv2.resize(unknown.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    if unknown.all():
        raise InvalidOutput("nothing around a hole is known")
    filled = network(image, unknown)
    return cv2.resize(filled, (width, height), interpolation=cv2.INTER_CUBIC) if shrink > 1 else filled
