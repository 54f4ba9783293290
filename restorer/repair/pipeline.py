"""Repair one photo: take a mask or detect the damage, and fill it."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadWeights, InvalidOption, InvalidOutput, OutOfMemory, WeightsUnavailable
from ..images.photo import Photo
from ..images.resample import luma
from ..models import download, registry, sources
from ..models.registry import Model
from ..options import Options

DETECTOR, FILLER, WIDE_FILLER = "damage-detector", "damage-filler", "big-lama"
OWN = "own"  # Repair.source of a mask that the user supplied
_LARGE = 0.1  # share of a photo that is rarely damage


@dataclass(frozen=True)
class Repair:
    """What was repaired in a photo.

    photo   the repaired photo, in its own size; the photo itself if the mask is empty
    mask    (h, w) bool: the filled pixels, upright as the photo
    source  of the mask: "auto" or "on" as in Options.repair, or OWN
    sensitivity  of the detection; None for a mask of the user's own
    models  SHA-256 of the weights by name of each network that was used
    note    why wide holes were filled with a blur; "" if they were not
    """

    photo: Photo
    mask: np.ndarray
    source: str
    sensitivity: float | None
    models: dict[str, str]
    note: str = ""

    @property
    def share(self) -> float:
        """The share of filled pixels, 0 to 1."""
        return float(self.mask.mean())

    @property
    def receipt(self) -> dict[str, object]:
        """What is reported of the repair, without its samples."""
        receipt: dict[str, object] = {
            "mask": self.source,
            "share": round(self.share, 6),
            "models": self.models,
        }
        return receipt if self.sensitivity is None else receipt | {"sensitivity": self.sensitivity}

    @property
    def warning(self) -> str:
        """Why nothing was repaired, or not as well as possible, for the user; "" if neither."""
        if self.source != OWN and self.share > _LARGE:
            large = f"{100 * self.share:.0f} % of the photo was taken for damage"
            return f"{large}; less with a lower repair_sensitivity{self.note and f'; {self.note}'}"
        if self.mask.any():
            return self.note
        reasons = {
            "auto": "no damage was seen with confidence",
            "on": f"no damage was found at sensitivity {self.sensitivity}",
            OWN: "the mask is empty",
        }
        return f"{reasons[self.source]}; nothing was repaired"


def load(model: Model, weights: Path, device: str | None) -> Any:  # noqa: ANN401  a network
    """Load the detector or a filler. Raises WeightsUnavailable and BadWeights.

    WIDE_FILLER is not downloaded: an ordinary repair needs none of its 206 MB.
    """
    if model.name == WIDE_FILLER and not sources.is_present(model, weights):
        command = f"python -m restorer models --fetch {model.name}"
        raise WeightsUnavailable(f"{model.name} is not present; run {command}")
    file = download.ensure(model, weights).path
    from ..inference import backends, memory
    from . import damage, networks, wide_holes

    target = backends.pick_device(device)
    with memory.out_of_memory():
        if model.name == WIDE_FILLER:
            return wide_holes.Lama(file, target)
        if model.name == FILLER:
            return damage.load(networks.Filler(), file, target)
        return damage.load(networks.Detector(), file, target)


def mask_png(mask: np.ndarray) -> bytes:
    """Return a mask (h, w) bool as a black and white PNG file, which Restorer.restore() accepts."""
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    return out.getvalue()


def mask_of(picture: Photo) -> np.ndarray:
    """Return the mask (h, w) bool that a picture shows: its light, opaque pixels."""
    half = np.iinfo(picture.pixels.dtype).max / 2
    marked = luma(picture.pixels) > half
    return marked if picture.alpha is None else marked & (picture.alpha > half)


def _check_mask(mask: np.ndarray, photo: Photo) -> np.ndarray:
    """Return the mask if it is one of this photo. Raises InvalidOption."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        raise InvalidOption("the mask must be a picture or an (h, w) array of bool")
    check_size(mask.shape[::-1], (photo.width, photo.height))
    return mask


def check_size(mask: tuple[int, ...], photo: tuple[int, ...]) -> None:
    """Raise InvalidOption if a mask's size (width, height) differs from the photo's."""
    if mask != photo:
        raise InvalidOption(
            f"the mask has {mask[0]} x {mask[1]} pixels and the photo {photo[0]} x {photo[1]}; "
            "make a mask of the photo's size, upright"
        )


def run(
    photo: Photo,
    visible: np.ndarray,
    mask: np.ndarray | None,
    options: Options,
    network: Callable[[str], Any],
    **computing: Any,  # noqa: ANN401  lock and progress of damage.detect()
) -> Repair:
    """Fill the mask's pixels of a photo; without a mask, those that are detected.

    visible  the photo's pixels, with transparent areas filled in
    network  returns the loaded network of that name

    Raises InvalidOption for a mask of another size, OutOfMemory, WeightsUnavailable and BadWeights.
    """
    from . import damage, wide_holes

    names, source, sensitivity, note = [], OWN, None, ""
    if mask is None:
        names, source, sensitivity = [DETECTOR], options.repair, options.repair_sensitivity
        probability = damage.detect(visible, network(DETECTOR), **computing)
        mask = damage.mask(probability, sensitivity, confident=source == "auto")
    mask, repaired = _check_mask(mask, photo), photo
    if mask.any():
        filled, left = visible, mask
        # auto fills narrow areas, though gaps between them may close
        holes = np.zeros_like(mask) if source == "auto" else wide_holes.select(mask)
        if holes.any():
            try:
                filled = wide_holes.fill(visible, holes, mask, network(WIDE_FILLER), **computing)
                left = mask & ~holes
                names.append(WIDE_FILLER)
            except (WeightsUnavailable, BadWeights, OutOfMemory, InvalidOutput) as error:
                note = f"holes wider than {wide_holes.WIDTH} pixels are filled with a blur: {error.args[0]}"
        if left.any():
            filled = damage.fill(filled, left, network(FILLER), **computing)
            names.append(FILLER)
        repaired = _filled(photo, mask, filled)
    models = {model.name: model.sha256 for model in registry.MODELS if model.name in names}
    return Repair(repaired, mask, source, sensitivity, models, note)


def _filled(photo: Photo, mask: np.ndarray, filled: np.ndarray) -> Photo:
    """Return the photo with the mask's pixels taken from `filled`, and grey if it was.

    filled  (h, w, 3) of the photo's dtype
    """
    if photo.meta.grey:
        filled = np.repeat(luma(filled)[..., None], 3, axis=2)
    return replace(photo, pixels=np.where(mask[..., None], filled, photo.pixels))
