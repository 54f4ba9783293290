"""Evaluate one photo: the input to restore, the original to compare with, and the metrics."""

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import atomic
from ..errors import InvalidOption, RestoreError
from ..faces import align
from ..images import encode, photo
from ..images.photo import Meta, Photo
from ..images.resample import resize, to_uint8
from ..inference.upscale import output_size
from ..options import Options
from ..pipeline import Restorer
from ..result import Result
from . import degradation, metrics
from .summary import BICUBIC

INPUT = "input"
ORIGINAL = "original"
# The part of a name that differs within a pair: photo_LR.png and photo_HR.png, baby_x4.png and baby.png
_PAIR_SUFFIX = re.compile(r"(?i)(?<=[_\-. ])(lr|hr|gt|lq|hq|x\d|\d+x)(?=[_\-. ]|$)")


@dataclass(frozen=True)
class Setup:
    """How photos are evaluated. Raises InvalidOption for an unknown recipe or a scale out of range.

    scale      factor by which photos are downscaled, then upscaled; 1 to 8
    recipe     a name in degradation.RECIPES
    published  follow the protocol of papers: MATLAB's bicubic for the input and for the baseline, no recipe
    degrades   degrade the photos first; otherwise restore them as they are and compare with their originals
    reference  False: there are no originals; use no-reference metrics
    lpips      also measure LPIPS
    """

    scale: float = Options.outscale
    recipe: str = "default"
    published: bool = False
    degrades: bool = True
    reference: bool = True
    lpips: bool = False

    def __post_init__(self) -> None:
        if self.recipe not in degradation.RECIPES:
            raise InvalidOption(
                f"unknown recipe {self.recipe!r}; use one of {', '.join(degradation.RECIPES)}"
            )
        if not 1 <= self.scale <= 8:  # NaN fails this too
            raise InvalidOption(f"scale is {self.scale}; use 1 to 8")
        if self.degrades and self.scale != int(self.scale):
            raise InvalidOption(f"scale is {self.scale}; use a whole number to downscale photos")


@dataclass(frozen=True)
class Variant:
    """A restorer and options to evaluate, under the name the user typed."""

    name: str
    restorer: Restorer
    options: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name, safe for a folder."""
        return re.sub(r"[^\w.=-]+", "_", self.name).strip("._") or "restored"


@dataclass(frozen=True)
class Case:
    """An input and its original, if any: (h, w, 3) uint8 or uint16 RGB, about `scale` times as large."""

    before: Photo
    truth: np.ndarray | None
    scale: float


def load_case(source: Path, original: Path | None, setup: Setup, *, seed: int = 0) -> Case:
    """Read a photo and build its case. Raises RestoreError and OSError.

    original  its original, where the setup does not degrade
    seed      seeds the degradation, together with the photo's name
    """
    before = photo.decode(source.read_bytes())
    if not setup.reference:
        return Case(before, None, setup.scale)
    if original is not None:
        return _paired(before, _read_original(original), source)
    scale = int(setup.scale)
    height, width = (side // scale * scale for side in before.pixels.shape[:2])
    if not height or not width:
        raise InvalidOption(f"{before.width} x {before.height} pixels are too few to downscale by {scale}")
    truth = to_uint8(before.pixels[:height, :width])
    if setup.published:
        small = degradation.matlab_bicubic(truth, 1 / scale)
    else:
        seeds = [seed, zlib.crc32(source.stem.encode(errors="surrogateescape"))]
        small = degradation.degrade(truth, degradation.RECIPES[setup.recipe], scale=scale, seed=seeds)
    return Case(Photo(small, None, Meta("png")), truth, scale)


def find_original(source: Path, folder: Path) -> Path:
    """Return the file in `folder` with the photo's name, stem, or stem apart from a suffix such as LR or HR.

    Raises InvalidOption if there is none, or more than one.
    """
    others = [path for path in sorted(folder.iterdir()) if path.is_file()]
    others = [path for path in others if path.resolve() != source.resolve()]
    for key in (lambda path: path.name, lambda path: path.stem, lambda path: _PAIR_SUFFIX.sub("", path.stem)):
        matches = [path for path in others if key(path).strip("_-. ") == key(source).strip("_-. ")]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(path.name for path in matches)
            raise InvalidOption(f"more than one original in {folder}: {names}")
    raise InvalidOption(f"no original in {folder}; give it the photo's name")


def _paired(before: Photo, truth: np.ndarray, source: Path) -> Case:
    """Return the case of a pair. Each side may miss the exact multiple by less than one input pixel."""
    height, width = truth.shape[:2]
    scale = round(width / before.width)
    excess = [width - before.width * scale, height - before.height * scale]
    if not 1 <= scale <= 8 or max(map(abs, excess)) >= max(scale, 1):
        raise InvalidOption(
            f"{source.name} is {before.width} x {before.height} pixels and its original {width} x {height}; "
            "the original must be the same whole multiple, 1 to 8, in width and height"
        )
    return Case(before, truth, scale)


def _read_original(path: Path) -> np.ndarray:
    try:
        return photo.decode(path.read_bytes()).pixels
    except RestoreError as error:
        raise type(error)(f"original {path.name}: {error}") from error


def compare(
    case: Case, variants: list[Variant], setup: Setup, output: Path, name: str
) -> Iterator[dict[str, object]]:
    """Restore a case with each variant; yield the metrics of bicubic, then of each variant, by name.

    Writes each image to its folder in `output`. A variant's row also has "model", "seconds", the number of
    detected "faces" and the result's "warnings". Raises RestoreError and OSError.
    """
    before = case.before
    if setup.published:
        plain = degradation.matlab_bicubic(before.pixels, case.scale)
    else:
        plain = degradation.bicubic(before.pixels, *output_size(before.width, before.height, case.scale))
    for folder, pixels in ((INPUT, before.pixels), (BICUBIC, plain)):
        encoded = encode.encode(Photo(pixels, None, Meta("png")), "png")
        atomic.write_atomic(image_path(output, folder, name), encoded.data)
    yield {"variant": BICUBIC, **_measure(case, plain, setup)}
    for variant in variants:
        result = variant.restorer.restore(before, **variant.options, outscale=case.scale, format="png")
        atomic.write_atomic(image_path(output, variant.folder, name), result.data)
        yield {
            "variant": variant.name,
            "model": result.model,
            "seconds": round(result.seconds, 3),
            "faces": len(result.faces),
            "warnings": "; ".join(result.warnings),
            **_measure(case, result.after.pixels, setup),
            "drift": drift(result),
        }


def image_path(output: Path, folder: str, name: str) -> Path:
    """Return where compare() writes an image; `folder` is INPUT, BICUBIC or a variant's."""
    return output / folder / f"{name}.png"


def _measure(case: Case, image: np.ndarray, setup: Setup) -> dict[str, float]:
    if case.truth is None:
        before = case.before
        return {
            "niqe": metrics.niqe(image),
            "sharpness": metrics.sharpness(image),
            # The input's JPEG blocks lie on the 8-pixel grid only at the input's size
            "blockiness": metrics.blockiness(resize(image, before.width, before.height)),
            "consistency": metrics.consistency(before.pixels, image),
        }
    truth, image = _align(case.truth, image)
    border = round(case.scale)
    values = {
        "psnr": metrics.psnr(truth, image, border=border),
        "ssim": metrics.ssim(truth, image, border=border),
        "psnr_y": metrics.psnr(truth, image, border=border, y=True),
        "ssim_y": metrics.ssim(truth, image, border=border, y=True),
    }
    if setup.lpips:
        values["lpips"] = metrics.lpips(truth, image, border=border)
    return values


def _align(truth: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop both to their common size, and convert to 8 bits unless both have 16."""
    height, width = (min(sides) for sides in zip(truth.shape[:2], image.shape[:2], strict=True))
    truth, image = truth[:height, :width], image[:height, :width]
    return (truth, image) if truth.dtype == image.dtype else (to_uint8(truth), to_uint8(image))


def drift(result: Result) -> float:
    """Return the largest metrics.drift() of the result's faces; NaN without a face."""
    scale = result.options.outscale
    drifts = [
        metrics.drift(
            face.before, align.crop(result.after.pixels, align.from_larger(face.affine, scale)), face.mask
        )
        for face in result.faces
        if face.mask.any()
    ]
    return max(drifts, default=math.nan)
