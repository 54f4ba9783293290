"""Give an enlarged image the low frequencies of its photo: networks shift colours and crush deep shadows.

Both images are averaged over the same cells, CELL pixels of the photo a side. The differences of the means
are interpolated by a cubic B-spline, which has no edges, and added. Everything is computed from whole images
in bands of fixed size, so that tiles and free memory do not change the result.
"""

import cv2
import numpy as np

from .resample import bands

CELL = 8
_PASSES = 3  # of an iteration towards exactly the photo's means; more would also copy more of its noise
# A cubic B-spline on a grid, averaged over cells: the quartic one at whole numbers
_AVERAGED_SPLINE = np.array([1, 76, 230, 76, 1]) / 384
_WHITE = 65535
_LEAST_ALPHA = 0.001 * _WHITE  # mean of a cell whose colour counts


def match(
    larger: np.ndarray,
    photo: np.ndarray,
    *,
    larger_alpha: np.ndarray | None = None,
    photo_alpha: np.ndarray | None = None,
) -> None:
    """Replace the low frequencies of `larger`, in place, by those of `photo`.

    larger        (H, W, 3) uint16
    photo         (h, w, 3) uint16, not larger
    larger_alpha  (H, W) uint16; transparent pixels neither count nor change
    photo_alpha   (h, w) uint16
    """
    height, width = larger.shape[:2]
    cells = -(-photo.shape[0] // CELL), -(-photo.shape[1] // CELL)
    steps = CELL * height / photo.shape[0], CELL * width / photo.shape[1]
    wanted, wanted_alpha = _means(photo, photo_alpha, cells, (CELL, CELL))
    present, present_alpha = _means(larger, larger_alpha, cells, steps)
    counts = np.minimum(wanted_alpha, present_alpha) > _LEAST_ALPHA
    spline = _coefficients(_extended(wanted - present, counts))
    columns, column_weights = _taps(np.arange(width), steps[1], cells[1])
    for rows in bands(height):
        lines, line_weights = _taps(np.arange(rows.start, rows.stop), steps[0], cells[0])
        first = lines.min()
        nodes = spline[first : lines.max() + 1]
        across = sum(
            nodes[:, column] * weight[:, None] for column, weight in zip(columns, column_weights, strict=True)
        )
        down = np.zeros((lines.shape[1], len(nodes)), np.float32)
        for line, weight in zip(lines, line_weights, strict=True):
            down[np.arange(len(down)), line - first] += weight
        shift = np.tensordot(down, across, 1)
        if larger_alpha is not None:
            shift[larger_alpha[rows] == 0] = 0
        larger[rows] = cv2.add(larger[rows], shift, dtype=cv2.CV_16U)


def _means(
    image: np.ndarray, alpha: np.ndarray | None, cells: tuple[int, int], steps: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colour of each cell, weighted by alpha, (cells, 3), and its mean alpha, (cells, 1).

    steps  height and width of a cell in pixels of the image; the last cells extend beyond it
    """
    height, width = image.shape[:2]
    beyond = max(0, round(cells[1] * steps[1]) - width)
    sums = np.zeros((*cells, 3 if alpha is None else 4))
    for rows in bands(height):
        values = image[rows].astype(np.float32)
        if alpha is not None:
            values = np.dstack([values * (alpha[rows, :, None] / np.float32(_WHITE)), alpha[rows]])
        values = cv2.copyMakeBorder(values, 0, 0, 0, beyond, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        across = cv2.resize(values, (cells[1], len(values)), interpolation=cv2.INTER_AREA)
        tops = np.arange(rows.start, rows.stop)
        first, last = int(rows.start / steps[0]), min(cells[0], int(rows.stop / steps[0]) + 1)
        cell = np.arange(first, last)[:, None] * steps[0]
        overlap = np.minimum(tops + 1, cell + steps[0]) - np.maximum(tops, cell)
        share = np.maximum(overlap, 0) / steps[0]
        sums[first:last] += np.tensordot(share, across.reshape(len(across), cells[1], -1), 1)
    inside = [
        np.minimum(side / step - np.arange(count), 1)
        for side, step, count in zip((height, width), steps, cells, strict=True)
    ]
    sums /= inside[0][:, None, None] * inside[1][:, None]
    if alpha is None:
        return sums, np.full((*cells, 1), _WHITE)
    return sums[..., :3] * _WHITE / np.maximum(sums[..., 3:], 1), sums[..., 3:]


def _extended(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return differences (H, W, 3) where `counts` (H, W, 1), and those of near cells, or 0, elsewhere."""
    if counts.all():
        return differences
    known = counts.astype(np.float64)
    sums = cv2.boxFilter(np.dstack([differences * known, known]), -1, (5, 5), normalize=False)
    sums = sums.reshape(*counts.shape[:2], 4)
    return np.where(counts, differences, sums[..., :3] / np.maximum(sums[..., 3:], 1))


def _coefficients(means: np.ndarray) -> np.ndarray:
    """Return coefficients of a B-spline that has nearly these means over the cells, float32."""
    out = np.zeros_like(means)
    for _ in range(_PASSES):
        kernel, border = _AVERAGED_SPLINE, cv2.BORDER_REPLICATE
        out += means - cv2.sepFilter2D(out, -1, kernel, kernel, borderType=border).reshape(means.shape)
    return out.astype(np.float32)


def _taps(pixels: np.ndarray, step: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the four cells around each pixel of an axis and their weights in a cubic B-spline, (4, N)."""
    position = (pixels + 0.5) / step - 0.5
    before = np.floor(position).astype(int)
    t = position - before
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return np.clip(before + np.arange(-1, 3)[:, None], 0, cells - 1), np.array(weights, np.float32) / 6
