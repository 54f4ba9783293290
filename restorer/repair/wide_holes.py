"""Fill holes that are too wide for the filler with LaMa, which sees a crop at once and continues structures.

Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, 2022. The file is a
TorchScript program: it maps photos (N, 3, h, w) RGB in 0..1 and masks (N, 1, h, w), 1 where a pixel is to be
filled and else 0, to photos with the mask filled, float32; h and w are multiples of 8.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from ..errors import BadWeights, InvalidOutput
from ..inference.engine import out_of_memory, without_tf32
from ..progress import Progress

WIDTH = 60  # pixels; the filler blurs wider holes
_CONTEXT = 128  # pixels around a hole, at least
_SIDE = 1024  # largest side of a crop; larger ones are computed on a smaller scale
_MULTIPLE = 8


def load(file: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Load the program. Raises BadWeights if the file holds none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch recommends its successor; the file stays as it is
            return torch.jit.load(str(file), map_location="cpu").eval().to(device)
    except RuntimeError as error:
        raise BadWeights(f"{file.name} is no TorchScript program") from error


def select(mask: np.ndarray) -> np.ndarray:
    """Return the connected areas of a mask (h, w) bool that are somewhere wider than WIDTH."""
    marked = mask.astype(np.uint8)
    areas = cv2.connectedComponents(marked, connectivity=8)[1]
    depth = cv2.distanceTransform(marked, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.isin(areas, areas[depth > WIDTH / 2])


def fill(
    image: np.ndarray,
    holes: np.ndarray,
    unknown: np.ndarray,
    network: torch.jit.ScriptModule,
    *,
    lock: AbstractContextManager[object] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the image with the holes filled, each connected area on its own, and all else unchanged.

    image     (h, w, 3) uint8 or uint16 RGB
    holes     (h, w) bool
    unknown   (h, w) bool: the holes and other damage, which is not looked at
    lock      held while an area is computed
    progress  called with (0, 0) before each area, see Restorer.restore(); it may raise

    Raises OutOfMemory, and InvalidOutput if the network returns NaN or infinite values.
    """
    result = image.copy()
    for crop, area in _areas(holes):
        if progress:
            progress(0, 0)
        with lock or nullcontext(), out_of_memory(), without_tf32(), torch.inference_mode():
            filled = _filled(image[crop], unknown[crop], network)
        result[crop][area] = filled[area]
    return result


def _areas(mask: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yield a crop around each connected area, and the area in it."""
    _, areas, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for number, (left, top, width, height, _) in enumerate(boxes[1:], 1):
        context = max(_CONTEXT, width // 2, height // 2)
        rows = slice(max(top - context, 0), top + height + context)
        columns = slice(max(left - context, 0), left + width + context)
        yield (rows, columns), areas[rows, columns] == number


def _filled(image: np.ndarray, mask: np.ndarray, network: torch.jit.ScriptModule) -> np.ndarray:
    device = next(network.parameters()).device
    white, (height, width) = np.iinfo(image.dtype).max, mask.shape
    shrink = max(height, width, _SIDE) / _SIDE
    rows, columns = (math.ceil(side / shrink) for side in (height, width))
    photo = torch.from_numpy(image.astype(np.float32) / white).to(device).permute(2, 0, 1)[None]
    hole = torch.from_numpy(mask.astype(np.float32)).to(device)[None, None]
    if shrink > 1:
        photo = functional.interpolate(photo, (rows, columns), mode="area")
        hole = functional.adaptive_max_pool2d(hole, (rows, columns))
    pad = 0, -columns % _MULTIPLE, 0, -rows % _MULTIPLE
    photo, hole = (functional.pad(part, pad, mode="replicate") for part in (photo, hole))
    output = network(photo, hole)[..., :rows, :columns].float()
    if not output.isfinite().all():
        raise InvalidOutput("the network returned NaN or infinite values")
    if shrink > 1:
        output = functional.interpolate(output, (height, width), mode="bicubic", align_corners=False)
    return (output[0].clamp(0, 1) * white).round().permute(1, 2, 0).cpu().numpy().astype(image.dtype)
