"""`python -m bench.quality`: the built-in model beside its teacher and bicubic.

Photographs of SETS/kodak24 and SETS/set14, degraded by evaluate.py's default recipe, and the real ones of
SETS/realsrset as they are. Prints, a set: how many decibels nearer to the teacher's picture ours is than
bicubic is; gradient energy beside the teacher's; PSNR to the truth, ours less the teacher's; NIQE (lower is
better), ours over the teacher's. Writes OUT/sheet-SET.png: bicubic, ours and teacher, 12 crops at 200 %.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from restorer.evaluation import degradation, metrics
from restorer.images import photo
from restorer.inference import engine
from restorer.inference.network import segments
from restorer.models import architectures, loader

from . import present

OURS, TEACHER = "restore-lite-x4", "realesr-general-x4v3"
_RECIPE = degradation.RECIPES["default"]
_CROP = 128  # of a contact sheet, in the pixels of the result


class Figures(NamedTuple):
    """One picture's. nearer, truth in dB (truth NaN where there is none), energy and niqe as ratios."""

    nearer: float
    energy: float
    truth: float
    niqe: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.quality", description=str(__doc__).partition("\n")[0])
    parser.add_argument("sets", type=Path, help="folder that holds kodak24/, set14/ and realsrset/")
    parser.add_argument("--model", type=Path, help=f"a weights file to judge instead of {OURS}")
    parser.add_argument("--out", type=Path, default=Path("out/quality"), help="folder for the contact sheets")
    parser.add_argument("--no-niqe", action="store_true", help="leave out NIQE, which takes most of the time")
    arguments = parser.parse_args()
    ours, teacher = network(OURS, arguments.model), network(TEACHER)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'set':10}  dB nearer  energy  PSNR to truth  NIQE")
    for name, pattern, degraded in (
        ("kodak24", "*.png", True),
        ("set14", "*HR.png", True),
        ("realsrset", "*", False),
    ):
        files = sorted((arguments.sets / name).glob(pattern))
        if not files:
            print(f"bench.quality: no pictures in {arguments.sets / name}", file=sys.stderr)
            return 2
        rows, crops = [], []
        for number, file in enumerate(files):
            truth = _read(file)
            small = degradation.degrade(_even(truth), _RECIPE, seed=number) if degraded else truth
            one, two, plain = ours(small), teacher(small), _bicubic(small)
            rows.append(figures(one, two, plain, _even(truth) if degraded else None, not arguments.no_niqe))
            print(f"  {file.name:22} {_row(rows[-1])}")
            crops += _crops(plain, one, two)
        print(f"{name:10}  {_row(Figures(*np.array(rows).mean(axis=0)))}", flush=True)
        _sheet(crops, arguments.out / f"sheet-{name}.png")
    return 0


def network(name: str, file: Path | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A model of the table, or the copy of it in custom/, or a file: (h, w, 3) to (4h, 4w, 3), uint8 RGB."""
    state = architectures.read_state(file) if file else loader.load(present(name)).state
    shape = architectures.detect(state, name)
    module = architectures.build(shape, state, name).eval().requires_grad_(False)
    run = engine.Engine(segments(module), scale=4)
    return lambda image: np.concatenate(list(run.bands(image, tile=256)))


def figures(
    ours: np.ndarray, teacher: np.ndarray, plain: np.ndarray, truth: np.ndarray | None, with_niqe: bool
) -> Figures:
    """All (h, w, 3) uint8 RGB."""
    return Figures(
        nearer=cv2.PSNR(ours, teacher) - cv2.PSNR(plain, teacher),
        energy=metrics.sharpness(ours) / metrics.sharpness(teacher),
        truth=np.nan if truth is None else cv2.PSNR(ours, truth) - cv2.PSNR(teacher, truth),
        niqe=metrics.niqe(ours, border=4) / metrics.niqe(teacher, border=4) if with_niqe else np.nan,
    )


def _bicubic(small: np.ndarray) -> np.ndarray:
    return degradation.bicubic(small, 4 * small.shape[1], 4 * small.shape[0])


def _read(file: Path) -> np.ndarray:
    return photo.decode(file.read_bytes()).pixels


def _even(image: np.ndarray) -> np.ndarray:
    return image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]


def _row(figures: Figures) -> str:
    return f"{figures.nearer:9.2f} {figures.energy:7.2f} {figures.truth:+14.2f} {figures.niqe:5.2f}"


def _crops(*pictures: np.ndarray) -> list[np.ndarray]:
    """The liveliest square of the last picture, from each, side by side."""
    luma = cv2.cvtColor(pictures[-1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    energy = cv2.blur(np.abs(cv2.Laplacian(luma, cv2.CV_32F)), (_CROP, _CROP))
    half = _CROP // 2
    inner = energy[half : max(half + 1, luma.shape[0] - half), half : max(half + 1, luma.shape[1] - half)]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    crops = [picture[top : top + _CROP, left : left + _CROP] for picture in pictures]
    return [
        np.concatenate([cv2.resize(c, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for c in crops], 1)
    ]


def _sheet(crops: list[np.ndarray], path: Path) -> None:
    rows = [np.concatenate(crops[at : at + 2], axis=1) for at in range(0, min(12, len(crops)) // 2 * 2, 2)]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    sys.exit(main())
