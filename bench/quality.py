"""`python -m bench.quality SETS`: compare the built-in model with RealESRGAN_x4plus and bicubic.

SETS/kodak24 and SETS/set14 are degraded lightly (evaluate.py's default recipe) and heavily (noise 10-25, JPEG
10-30); SETS/realsrset is used as it is. Prints a row per set and model, the means of Figures. Writes
OUT/sheet-SET.png, 12 crops at 200 %: bicubic, the models, RealESRGAN_x4plus. The outputs of RealESRGAN_x4plus
are cached in OUT.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from restorer.evaluation import degradation, metrics
from restorer.images import photo
from restorer.models import architectures, loader, registry

from . import peers, present

REFERENCE = "RealESRGAN_x4plus"
HEAVY = degradation.Recipe(
    "light blur, downscaling, much noise, low-quality JPEG", (0.6, 1.6), (10, 25), (10, 30)
)
_LIGHT = degradation.RECIPES["default"]
_CASES = (
    ("kodak24", "light", "*.png", _LIGHT),
    ("kodak24", "heavy", "*.png", HEAVY),
    ("set14", "light", "*HR.png", _LIGHT),
    ("set14", "heavy", "*HR.png", HEAVY),
    ("realsrset", "", "*", None),
)
_SCALE = 4
_CROP = 128  # of a contact sheet, in the pixels of the result
_FLAT = 32  # side in pixels of the squares of blotches()
_FLAT_SHARE = 0.25  # of the squares, the flattest, which count
_LEAST_CHROMA = 0.25  # levels; rounding alone gives about as much

Upscale = Callable[[np.ndarray], np.ndarray]


class Figures(NamedTuple):
    """Of one result, compared with bicubic and with the reference.

    nearer    PSNR to the reference less that of bicubic, in dB
    truth     likewise to the original; NaN without one
    energy    of gradients; this and the following are relative to the reference's
    niqe      lower is better
    blocks    gradients across the borders of the input's 8 x 8 blocks over those elsewhere
    blotches  deviation of chroma in flat areas
    grid      see grid()
    """

    nearer: float
    truth: float
    energy: float
    niqe: float
    blocks: float
    blotches: float
    grid: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.quality", description=str(__doc__).partition("\n")[0])
    parser.add_argument("sets", type=Path, help="folder that contains kodak24/, set14/ and realsrset/")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="another weights file to compare; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder for sheets and cache")
    parser.add_argument("--no-niqe", action="store_true", help="skip NIQE, which takes most of the time")
    arguments = parser.parse_args()
    networks = {registry.BUILT_IN: network(registry.BUILT_IN)}
    networks |= {file.stem: network(file.stem, file) for file in arguments.model}
    reference = cached(network(REFERENCE), arguments.out / REFERENCE)
    print(f"{'':38}{'nearer':>8}{'truth':>8}{'energy':>8}{'NIQE':>8}{'blocks':>8}{'blotches':>10}{'grid':>8}")
    for folder, kind, pattern, recipe in _CASES:
        files = sorted((arguments.sets / folder).glob(pattern))
        if not files:
            print(f"bench.quality: no images in {arguments.sets / folder}", file=sys.stderr)
            return 2
        rows: dict[str, list[Figures]] = {}
        crops = []
        for seed, file in enumerate(files):
            small, truth = photo.decode(file.read_bytes()).pixels, None
            if recipe:
                truth = _crop_to_scale(small)
                small = degradation.degrade(truth, recipe, seed=seed)
            best, plain = reference(small), bicubic(small)
            results = {name: upscale(small) for name, upscale in networks.items()}
            for name, result in ({"bicubic": plain} | results | {REFERENCE: best}).items():
                row = figures(result, best, plain, truth, not arguments.no_niqe)
                rows.setdefault(name, []).append(row)
            crops.append(_crops(plain, *results.values(), best))
        for name, figures_of in rows.items():
            print(f"{folder:10}{kind:6}{name:22}{_row(np.array(figures_of).mean(axis=0))}", flush=True)
        _sheet(crops, arguments.out / f"sheet-{folder}{kind and '-' + kind}.png")
    return 0


def network(name: str, file: Path | None = None) -> Upscale:
    """Return a model, or the one in `file`: it maps (h, w, 3) uint8 RGB to (4h, 4w, 3)."""
    state = architectures.read_state(file) if file else loader.load(present(name)).state
    module = architectures.build(architectures.detect(state, name), state, name).eval()

    return torch.inference_mode()(lambda image: peers.levels(module(peers.planes(image.copy()))))


def cached(upscale: Upscale, folder: Path) -> Upscale:
    """Keep each output in `folder`, named by the SHA-256 of its input."""
    folder.mkdir(parents=True, exist_ok=True)

    def read_or_compute(image: np.ndarray) -> np.ndarray:
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        path = folder / f"{digest[:16]}.png"
        if not path.exists():
            cv2.imwrite(str(path), upscale(image)[..., ::-1])
        return photo.decode(path.read_bytes()).pixels

    return read_or_compute


def figures(
    image: np.ndarray, reference: np.ndarray, plain: np.ndarray, truth: np.ndarray | None, with_niqe: bool
) -> Figures:
    """Measure a result; `plain` is bicubic's. All are (h, w, 3) uint8 RGB."""
    ratio = metrics.niqe(image, border=4) / metrics.niqe(reference, border=4) if with_niqe else np.nan
    same = image is reference
    return Figures(
        nearer=np.nan if same else cv2.PSNR(image, reference) - cv2.PSNR(plain, reference),
        truth=np.nan if truth is None else cv2.PSNR(image, truth) - cv2.PSNR(plain, truth),
        energy=metrics.sharpness(image) / metrics.sharpness(reference),
        niqe=ratio,
        blocks=_blocks(image) / _blocks(reference),
        blotches=blotches(image, reference) / max(blotches(reference, reference), _LEAST_CHROMA),
        grid=grid(image) / grid(reference),
    )


def blotches(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the standard deviation of chroma, in levels, within the flattest squares of the reference."""
    squares = _squares(cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY)[..., None]).std(axis=(1, 2))[:, 0]
    flat = squares <= np.quantile(squares, _FLAT_SHARE)
    chroma = _squares(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[..., 1:])[flat]
    return float(np.sqrt(chroma.var(axis=(1, 2)).mean()))


def grid(image: np.ndarray) -> float:
    """Return how regular the detail of flat areas is: about 1 for noise.

    The mean strength of detail at each of 8 x 8 places of a period of 8 pixels; the largest over their mean.
    """
    grey = image.astype(np.float32).mean(2)
    squares = _squares(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1))[..., None])[..., 0]
    strength = squares.mean(axis=(1, 2))
    flat = squares[strength <= np.median(strength)]
    places = flat.reshape(len(flat), _FLAT // 8, 8, _FLAT // 8, 8).mean(axis=(0, 1, 3))
    return float(places.max() / max(places.mean(), 1e-6))


def bicubic(small: np.ndarray) -> np.ndarray:
    return degradation.bicubic(small, _SCALE * small.shape[1], _SCALE * small.shape[0])


def _blocks(image: np.ndarray) -> float:
    return metrics.blockiness(image, block=_SCALE * metrics.BLOCK)


def _squares(image: np.ndarray) -> np.ndarray:
    """Cut (h, w, c) into (n, 32, 32, c) float32."""
    rows, columns = (side // _FLAT for side in image.shape[:2])
    cut = image[: rows * _FLAT, : columns * _FLAT].astype(np.float32)
    cut = cut.reshape(rows, _FLAT, columns, _FLAT, -1).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * columns, _FLAT, _FLAT, -1)


def _crop_to_scale(image: np.ndarray) -> np.ndarray:
    return image[: image.shape[0] // _SCALE * _SCALE, : image.shape[1] // _SCALE * _SCALE]


def _row(means: np.ndarray) -> str:
    """Format the means; "-" where a figure does not apply."""
    formats = ("+8.2f", "+8.2f", "8.2f", "8.2f", "8.2f", "10.2f", "8.2f")
    return "".join(
        f"{'-':>{int(form.strip('+').partition('.')[0])}}" if np.isnan(mean) else format(mean, form)
        for mean, form in zip(means, formats, strict=True)
    )


def _crops(*images: np.ndarray) -> np.ndarray:
    """Return the liveliest square of the last image, from each, side by side at 200 %."""
    luma = cv2.cvtColor(images[-1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = cv2.blur(np.abs(cv2.Laplacian(luma, cv2.CV_32F)), (_CROP, _CROP))
    half = _CROP // 2
    inner = energy[half : max(half + 1, luma.shape[0] - half), half : max(half + 1, luma.shape[1] - half)]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    crops = [image[top : top + _CROP, left : left + _CROP] for image in images]
    return np.concatenate(
        [cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for crop in crops], 1
    )


def _sheet(crops: list[np.ndarray], path: Path) -> None:
    rows = [np.concatenate(crops[at : at + 2], axis=1) for at in range(0, min(12, len(crops)) // 2 * 2, 2)]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    sys.exit(main())
