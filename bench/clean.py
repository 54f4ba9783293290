"""Clean photographs without enlarging them: models at 1x, non-local means, and the degraded photo itself.

    python -m bench.clean PHOTOS [--models A,B] [--crops N]

PHOTOS is a folder. From N of its photos, evenly spaced, a crop of 192 x 144 pixels gets noise and JPEG at
three seeded levels. Non-local means (OpenCV) is given the true deviation of the noise.
"""

import argparse
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from restorer.evaluation import degradation, metrics
from restorer.evaluation.degradation import Recipe
from restorer.images import file_types, photo
from restorer.images.photo import Meta, Photo
from restorer.pipeline import Restorer
from restorer.tables import align_columns

LEVELS = {  # deviation of the noise in levels of 255, and quality
    "noise 5-10, JPEG 40-50": ((5, 10), (40, 50)),
    "noise 12-18, JPEG 25-35": ((12, 18), (25, 35)),
    "noise 20-25, JPEG 10-20": ((20, 25), (10, 20)),
}
_WIDTH, _HEIGHT = 192, 144
_STRENGTHS = (1.0, 0.5)


def crop(pixels: np.ndarray) -> np.ndarray:
    top, left = ((side - size) // 2 for side, size in zip(pixels.shape, (_HEIGHT, _WIDTH), strict=False))
    return np.ascontiguousarray(pixels[top : top + _HEIGHT, left : left + _WIDTH])


def cleaned(pixels: np.ndarray, sigma: float, restorer: Restorer, models: list[str]) -> dict[str, np.ndarray]:
    """Return the degraded pixels and each method's result by name."""
    results = {"untouched": pixels, "non-local means": _means(pixels, sigma)}
    for model in models:
        full = restorer.restore(Photo(pixels, None, Meta("png")), model=model, outscale=1, face_enhance="off")
        for strength in _STRENGTHS:
            results[f"{model}, {strength:g}"] = restorer.recompose(full, strength=strength).after.pixels
    return results


def _means(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise RGB; OpenCV's function takes BGR."""
    return cv2.fastNlMeansDenoisingColored(pixels[..., ::-1].copy(), None, sigma, sigma)[..., ::-1].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--models", default="RealESRGAN_x4plus,realesr-general-x4v3,restore-lite-2-x4")
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    files = list(filter(file_types.is_photo, sorted(arguments.photos.glob("*.*"))))
    if not files:
        parser.error(f"no photographs in {arguments.photos}")
    files = files[:: max(1, len(files) // arguments.crops)][: arguments.crops]
    restorer = Restorer(weights=arguments.weights)
    print(
        f"{len(files)} crops of {_WIDTH} x {_HEIGHT} at each level: PSNR in dB, SSIM, NIQE (lower is better)"
    )
    for name, (noise, jpeg) in LEVELS.items():
        scores: dict[str, list[tuple[float, ...]]] = {}
        for seed, file in enumerate(files):
            truth = crop(photo.decode(file.read_bytes()).pixels)
            degraded = degradation.degrade(truth, Recipe(name, (), noise, jpeg), scale=1, seed=seed)
            sigma = float(np.random.default_rng(seed).uniform(*noise))
            for method, pixels in cleaned(degraded, sigma, restorer, arguments.models.split(",")).items():
                psnr, ssim = metrics.psnr(truth, pixels), metrics.ssim(truth, pixels)
                scores.setdefault(method, []).append((psnr, ssim, metrics.niqe(pixels)))
        mean = partial(np.mean, axis=0)
        rows = [
            (method, *(f"{value:.{digits}f}" for value, digits in zip(mean(values), (2, 3, 1), strict=True)))
            for method, values in scores.items()
        ]
        print(f"\n{name}\n" + align_columns([("METHOD", "PSNR", "SSIM", "NIQE"), *rows], left=1), flush=True)


if __name__ == "__main__":
    main()
