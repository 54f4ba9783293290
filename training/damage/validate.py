"""Measure the detector and the filler on held-out photographs with held-out damage."""

import cv2
import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional

from .compose import Atlas, Batch, compose
from .learn import Run
from .photos import Bank

_BINS = 2000  # of probability
_PRECISION = 0.70
_MARKED = 0.001  # largest share of pixels marked on undamaged crops
_SEED = 77


class Validation:
    """Fixed crops, half of them undamaged, few with drawn content.

    batches  of `size` crops each
    """

    def __init__(self, photos: Bank, damage: Atlas, content: Atlas, *, batches: int, size: int) -> None:
        self._batches: list[tuple[Batch, torch.Tensor]] = []
        for number in range(batches):
            rng = torch.Generator(photos.device).manual_seed(_SEED + number)
            with torch.no_grad():
                plain = 1.0 if number % 2 else 0.5
                batch = compose(photos, damage, content, size, rng, undamaged=0.5, plain=plain)
                mask = functional.max_pool2d(batch.damage, 5, 1, 2)
            self._batches.append((batch, mask))
        batch, mask = self._batches[0]
        pairs = zip(_telea(batch, mask), batch.clean, mask, strict=True)
        self._baselines = [_psnr_in_mask(*pair) for pair in pairs]

    def report(self, run: Run) -> str:
        """Return one line of figures; see the module."""
        counts = torch.zeros(3, _BINS, dtype=torch.float64, device=run.device)
        parts = []
        for batch, _ in self._batches if "detector" in run.learners else ():
            logits = _outputs(run, "detector", batch.photo)
            probability = logits.float().sigmoid()
            clean = (batch.damage.amax((1, 2, 3), keepdim=True) == 0).expand_as(probability)
            counted = (batch.weight > 0) & ~clean
            hit = batch.damage > 0
            for row, chosen in enumerate((counted & hit, counted & ~hit, clean)):
                bins = (probability * _BINS).long().clamp(max=_BINS - 1)
                counts[row] += torch.bincount(bins.flatten(), chosen.flatten().double(), _BINS)
        if "detector" in run.learners:
            parts.append(_detection(counts.flip(1).cumsum(1).cpu().numpy()))
        if "filler" in run.learners:
            batch, mask = self._batches[0]
            filled = _outputs(run, "filler", batch.photo, mask)
            parts.append(self._gains(filled.float().clamp(0, 1), batch, mask))
        return "  ".join(parts)

    def _gains(self, filled: torch.Tensor, batch: Batch, mask: torch.Tensor) -> str:
        filler = [_psnr_in_mask(*item) for item in zip(filled, batch.clean, mask, strict=True)]
        nothing = [_psnr_in_mask(*item) for item in zip(batch.photo, batch.clean, mask, strict=True)]
        table = np.array([filler, self._baselines, nothing])
        own, telea, damaged = table[:, ~np.isnan(table).any(0)].mean(1)
        return f"filler {own:.2f} dB, {own - telea:+.2f} over Telea, {own - damaged:+.2f} over no repair"


def _outputs(run: Run, name: str, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what a network with its averaged weights makes of the inputs."""
    learner = run.learners[name]
    with torch.no_grad(), run.precision():
        return functional_call(learner.network, learner.mean, inputs)


def _detection(totals: np.ndarray) -> str:
    """Summarise numbers (3, _BINS) of pixels above falling thresholds: damage, no damage, undamaged crops."""
    hits, misses, marked = totals
    recall = hits / max(hits[-1], 1)
    precision = hits / np.maximum(hits + misses, 1)
    marked = marked / max(marked[-1], 1)
    good = np.flatnonzero((precision >= _PRECISION) & (hits > 0))
    strict = np.flatnonzero(marked <= _MARKED)
    best = good[-1] if len(good) else 0
    last = strict[-1] if len(strict) else 0
    return (
        f"recall {recall[best]:.3f} at precision {_PRECISION:.2f} (threshold {_threshold(best):.3f}, "
        f"{100 * marked[best]:.2f} % of clean marked); at 0.1 %: recall {recall[last]:.3f}, "
        f"precision {precision[last]:.3f} (threshold {_threshold(last):.3f})"
    )


def _threshold(index: int) -> float:
    return 1 - (index + 1) / _BINS


def _telea(batch: Batch, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return OpenCV's inpainting (3, h, w) of each crop."""
    results = []
    for photo, hole in zip(batch.photo.cpu(), mask.cpu(), strict=True):
        pixels = np.ascontiguousarray((photo * 255).round().byte().permute(1, 2, 0).numpy())
        filled = cv2.inpaint(pixels, np.ascontiguousarray(hole[0].byte().numpy()), 3, cv2.INPAINT_TELEA)
        results.append(torch.from_numpy(filled).permute(2, 0, 1).float().div(255).to(batch.photo.device))
    return results


def _psnr_in_mask(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the PSNR in dB of the mask's pixels; NaN for an empty mask."""
    if mask.sum() == 0:
        return float("nan")
    error = ((image - target).square() * mask).sum() / (3 * mask.sum())
    return float(-10 * error.clamp(min=1e-10).log10())
