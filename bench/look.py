"""Look at photos with known faults: how often exactly these are found, and the time for 12 megapixels.

    python -m bench.look PHOTOS

PHOTOS is a folder of good photographs. 200 seeded cases in turns: nothing, noise of 8 to 25 levels, JPEG
files of quality 10 to 45, the same as PNG (quality 10 to 30), blur with a sigma of 2.5 to 4, fading
(bench/colour.py), grey, sepia, and drawn scratches and specks. A case is right if the look finds this and
nothing else. Faces are not looked for: see bench/recall.py.
"""

import argparse
import io
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from restorer import Restorer
from restorer.images import file_types, photo
from restorer.images.resample import luma

from .colour import faded

CASES, ROUNDS = 200, 9
FAULTS = ("", "noise", "jpeg", "jpeg as png", "blur", "faded", "grey", "toned", "damage")


def file_with(fault: str, pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """Return a file of a photo with a fault."""
    if fault.startswith("jpeg"):
        data = _encoded(pixels, "JPEG", quality=int(rng.integers(10, 46 if fault == "jpeg" else 31)))
        return data if fault == "jpeg" else _encoded(np.asarray(Image.open(io.BytesIO(data))), "PNG")
    if fault == "noise":
        noisy = pixels + rng.normal(0, rng.uniform(8, 25), pixels.shape)
        pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    elif fault == "blur":
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(2.5, 4))
    elif fault == "faded":
        pixels = faded(pixels, rng)
    elif fault in ("grey", "toned"):
        pixels = np.repeat(luma(pixels)[..., None], 3, axis=2)
        if fault == "toned":
            tone = np.array([1, rng.uniform(0.75, 0.92), rng.uniform(0.45, 0.75)])
            pixels = np.rint(pixels * tone).astype(np.uint8)
    elif fault == "damage":
        pixels = _scratched(pixels, rng)
    return _encoded(pixels, "PNG")


def _encoded(pixels: np.ndarray, image_format: str, **options: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **options)
    return out.getvalue()


def _scratched(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw long scratches and specks."""
    out, (height, width) = pixels.copy(), pixels.shape[:2]
    for _ in range(int(rng.integers(12, 25))):
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        steps = np.linspace(0, 1, 20)[:, None]
        line = ends[0] + (ends[1] - ends[0]) * steps + np.cumsum(rng.normal(0, 2, (20, 2)), axis=0)
        level = int(rng.choice([25, 230]))
        points = [np.rint(line * 16).astype(np.int32)]
        cv2.polylines(out, points, False, (level,) * 3, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    for _ in range(60):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(out, centre, int(rng.integers(1, 5)), (int(rng.choice([25, 230])),) * 3, -1, cv2.LINE_AA)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    folder = parser.parse_args().photos
    files = filter(file_types.is_photo, sorted(folder.glob("*.*")))
    originals = [photo.decode(path.read_bytes()).pixels for path in files]
    if not originals:
        parser.error(f"no photographs in {folder}")
    restorer = Restorer(weights="absent", device="cpu")  # without YuNet
    right, total, wrong = Counter(), Counter(), Counter()
    for seed in range(CASES):
        fault = FAULTS[seed % len(FAULTS)]
        data = file_with(fault, originals[seed * 7 % len(originals)], np.random.default_rng(seed))
        seen = restorer.look(data)
        names = " ".join(one.name for one in seen.findings)
        expected = fault.removesuffix(" as png")
        total[fault] += 1
        right[fault] += names == expected
        if names != expected:
            wrong[f"{fault or 'nothing'} -> {names or 'nothing'}"] += 1
    print(f"{sum(right.values())} of {CASES} cases right: ", end="")
    print(", ".join(f"{fault or 'nothing'} {right[fault]}/{total[fault]}" for fault in FAULTS))
    print("wrong: " + ", ".join(f"{case} {count}" for case, count in wrong.most_common()))
    large = photo.decode(_encoded(cv2.resize(originals[0], (4000, 3000)), "PNG"))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        restorer.look(large)
        seconds.append(time.perf_counter() - start)
    print(
        f"12 megapixels: {min(seconds):.2f} s at best, {np.median(seconds):.2f} s in the median of {ROUNDS}"
    )


if __name__ == "__main__":
    main()
