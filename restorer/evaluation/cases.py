"""One photo judged: the input that is restored, the original it is compared with, and the figures."""

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
# What sets apart the names of a pair: photo_LR.png and photo_HR.png, baby_x4.png and baby.png
_MARKS = re.compile(r"(?i)(?<=[_\-. ])(lr|hr|gt|lq|hq|x\d|\d+x)(?=[_\-. ]|$)")


@dataclass(frozen=True)
class Setup:
    """How photos are judged.

    scale      what they are made smaller by, and enlarged by
    recipe     a name of degrade.RECIPES
    published  as papers do: made small and enlarged for comparison by MATLAB's bicubic, nothing else
    degrades   make them worse first; else they are restored as they are, beside originals of their own
    reference  False: there are no originals, the photos are judged by themselves
    lpips      measure that too
    """

    scale: float = Options.outscale
    recipe: str = "default"
    published: bool = False
    degrades: bool = True
    reference: bool = True
    lpips: bool = False

    def __post_init__(self) -> None:
        if self.recipe not in degradation.RECIPES:
            known = ", ".join(degradation.RECIPES)
            raise InvalidOption(f"recipe is {self.recipe!r}; it must be one of {known}")
        if not 1 <= self.scale <= 8:  # NaN fails this too
            raise InvalidOption(f"scale is {self.scale}; it must be from 1 to 8")
        if self.degrades and self.scale != int(self.scale):
            raise InvalidOption(f"scale is {self.scale}; photos are made smaller by a whole number only")


@dataclass(frozen=True)
class Variant:
    """What is judged, by the name the user gave it: a restorer, and options for each photo."""

    name: str
    restorer: Restorer
    options: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name as one of a folder."""
        return re.sub(r"[^\w.=-]+", "_", self.name).strip("._") or "restored"


@dataclass(frozen=True)
class Case:
    """An input and, where there is one, its original: (h, w, 3), about `scale` times as large each way."""

    before: Photo
    truth: np.ndarray | None
    scale: float


def case(source: Path, original: Path | None, setup: Setup, *, seed: int = 0) -> Case:
    """Read a photo and make of it what is judged. Raises RestoreError and OSError.

    original  where the setup does not degrade
    seed      with the photo's name it decides how it is made worse
    """
    seen = photo.decode(source.read_bytes())
    if not setup.reference:
        return Case(seen, None, setup.scale)
    if original is not None:
        return _paired(seen, _original(original), source)
    scale = int(setup.scale)
    height, width = (side // scale * scale for side in seen.pixels.shape[:2])
    if not height or not width:
        raise InvalidOption(f"{seen.width} x {seen.height} pixels cannot be made {scale} times smaller")
    truth = to_uint8(seen.pixels[:height, :width])
    if setup.published:
        small = degradation.matlab_bicubic(truth, 1 / scale)
    else:
        own = [seed, zlib.crc32(source.stem.encode(errors="surrogateescape"))]
        small = degradation.degrade(truth, degradation.RECIPES[setup.recipe], scale=scale, seed=own)
    return Case(Photo(small, None, Meta("png")), truth, scale)


def find_original(source: Path, folder: Path) -> Path:
    """The original of a photo: the file of its name, or of the same but for a mark such as LR or HR.

    Raises InvalidOption where there is none, or more than one.
    """
    others = [path for path in sorted(folder.iterdir()) if path.is_file()]
    others = [path for path in others if path.resolve() != source.resolve()]
    for key in (lambda path: path.name, lambda path: path.stem, lambda path: _MARKS.sub("", path.stem)):
        found = [path for path in others if key(path).strip("_-. ") == key(source).strip("_-. ")]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise InvalidOption(f"there is more than one original in {folder}: {names}")
    raise InvalidOption(f"there is no original in {folder}: it needs the same name")


def _paired(before: Photo, truth: np.ndarray, source: Path) -> Case:
    """An input and its original, whose sides may be up to a pixel of the input off a multiple."""
    height, width = truth.shape[:2]
    scale = round(width / before.width)
    off = [width - before.width * scale, height - before.height * scale]
    if not 1 <= scale <= 8 or max(map(abs, off)) >= max(scale, 1):
        raise InvalidOption(
            f"{source.name} has {before.width} x {before.height} pixels and its original {width} x {height}: "
            "that must be the same whole number of times as many each way, from 1 to 8"
        )
    return Case(before, truth, scale)


def _original(path: Path) -> np.ndarray:
    try:
        return photo.decode(path.read_bytes()).pixels
    except RestoreError as error:
        raise type(error)(f"its original {path.name}: {error}") from error


def compare(
    one: Case, variants: list[Variant], setup: Setup, output: Path, name: str
) -> Iterator[dict[str, object]]:
    """Restore a case with each variant; yields bicubic's figures, then each variant's, by name.

    Every picture goes into a folder of `output` on the way. Of a variant also "model", "seconds", how many
    "faces" were found, and the result's "warnings". Raises RestoreError and OSError.
    """
    before = one.before
    if setup.published:
        plain = degradation.matlab_bicubic(before.pixels, one.scale)
    else:
        plain = degradation.bicubic(before.pixels, *output_size(before.width, before.height, one.scale))
    for folder, pixels in ((INPUT, before.pixels), (BICUBIC, plain)):
        written = encode.encode(Photo(pixels, None, Meta("png")), "png", quality=Options.quality)
        atomic.write_atomic(picture_path(output, folder, name), written.data)
    yield {"variant": BICUBIC, **_figures(one, plain, setup)}
    for variant in variants:
        result = variant.restorer.restore(before, **variant.options, outscale=one.scale, format="png")
        atomic.write_atomic(picture_path(output, variant.folder, name), result.data)
        told = {"model": result.model, "seconds": round(result.seconds, 3), "faces": len(result.faces)}
        told |= {"warnings": "; ".join(result.warnings)}
        figures = _figures(one, result.after.pixels, setup)
        yield {"variant": variant.name, **told, **figures, "drift": drift(result)}


def picture_path(output: Path, folder: str, name: str) -> Path:
    """Where compared() wrote a picture: folder INPUT, PLAIN or a variant's."""
    return output / folder / f"{name}.png"


def _figures(one: Case, image: np.ndarray, setup: Setup) -> dict[str, float]:
    if one.truth is None:
        before = one.before
        return {
            "niqe": metrics.niqe(image),
            "sharpness": metrics.sharpness(image),
            # JPEG's blocks are those of the input: at its size they can be told from what is there
            "blockiness": metrics.blockiness(resize(image, before.width, before.height)),
            "consistency": metrics.consistency(before.pixels, image),
        }
    truth, image = _alike(one.truth, image)
    border = round(one.scale)
    found = {
        "psnr": metrics.psnr(truth, image, border=border),
        "ssim": metrics.ssim(truth, image, border=border),
        "psnr_y": metrics.psnr(truth, image, border=border, y=True),
        "ssim_y": metrics.ssim(truth, image, border=border, y=True),
    }
    return {**found, "lpips": metrics.lpips(truth, image, border=border)} if setup.lpips else found


def _alike(truth: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What both have of an original and a picture, in 8 bits where one has no more."""
    height, width = (min(sides) for sides in zip(truth.shape[:2], image.shape[:2], strict=True))
    truth, image = truth[:height, :width], image[:height, :width]
    return (truth, image) if truth.dtype == image.dtype else (to_uint8(truth), to_uint8(image))


def drift(result: Result) -> float:
    """Of the face that drifted most, see metrics.drift(); NaN without one."""
    scale = result.width / result.before.width
    found = [
        metrics.drift(
            face.before, align.crop(result.after.pixels, align.from_larger(face.affine, scale)), face.mask
        )
        for face in result.faces
        if face.mask.any()
    ]
    return max(found, default=math.nan)
