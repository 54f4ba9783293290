"""Fade photographs and correct them: distance to the original before and after, and what undamaged ones lose.

    python -m bench.colour PHOTOS

PHOTOS is a folder. 50 fadings, seeded, in linear light: a gain and a gamma for each channel, a tinted veil
and yellowing. The distance is the mean CIE deltaE2000 of all pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

from restorer.images import colour, file_types, photo
from restorer.images.icc import decode_srgb, encode_srgb

FADINGS = 50


def fading(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gain, gamma and veil of each channel, (3,): light fades to gain * light ** gamma + veil."""
    gain, gamma = rng.uniform(0.55, 1, 3), rng.uniform(0.75, 1.35, 3)
    veil, yellow = rng.uniform(0.02, 0.15), rng.uniform(0, 0.45)
    tint = rng.uniform(0.6, 1, 3)
    paper = np.array([1, 1 - 0.3 * yellow, 1 - yellow])
    return (1 - veil) * gain * paper, gamma, veil * tint * paper


def faded(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a faded copy of a photo, both (H, W, 3) uint8."""
    gain, gamma, veil = fading(rng)
    return np.rint(255 * encode_srgb(gain * decode_srgb(pixels / 255) ** gamma + veil)).astype(np.uint8)


def corrected(pixels: np.ndarray) -> np.ndarray:
    return colour.correct(pixels, colour.measure(pixels))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(deltaE_ciede2000(rgb2lab(a), rgb2lab(b)).mean())


def clipped(pixels: np.ndarray) -> float:
    """Return the share of pixels with a channel at 0 or 255."""
    return float(((pixels == 0) | (pixels == 255)).any(axis=2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    folder = parser.parse_args().photos
    files = filter(file_types.is_photo, sorted(folder.glob("*.*")))
    photos = {path.name: photo.decode(path.read_bytes()).pixels for path in files}
    if not photos:
        parser.error(f"no photographs in {folder}")
    distances, clipping = [], []
    for seed in range(FADINGS):
        original = list(photos.values())[seed % len(photos)]
        before = faded(original, np.random.default_rng(seed))
        after = corrected(before)
        distances.append((distance(original, before), distance(original, after)))
        clipping.append(clipped(after) - clipped(before))
    before, after = np.transpose(distances)
    print(f"{FADINGS} fadings of {len(photos)} photos: deltaE2000 {np.median(before):.2f} before,", end=" ")
    print(f"{np.median(after):.2f} after, {np.median(after / before):.2f} times as much in the median photo,")
    worse = int((after > 1.1 * before).sum())
    print(f"{(after / before).max():.2f} in the worst; {worse} worse by more than 10 %,")
    print(f"{100 * max(clipping):.3f} % more clipped pixels at most")
    changes = {name: distance(pixels, corrected(pixels)) for name, pixels in photos.items()}
    changes = {name: change for name, change in changes.items() if change}
    print(f"undamaged: {len(photos) - len(changes)} of {len(photos)} unchanged", end="")
    print("".join(f"; {name} by {change:.2f}" for name, change in changes.items()))


if __name__ == "__main__":
    main()
