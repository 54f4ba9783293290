"""The installed RealESRGANer, and photos of every checkout, for pixel comparisons."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import skimage.data

from restorer.models import architectures, compat

if TYPE_CHECKING:
    from realesrgan import RealESRGANer

_NOISY = Path(__file__).parents[1] / "assets/benchmark"


def realesrganer(arch: str, parameters: dict, path: Path) -> "RealESRGANer":
    """RealESRGANer with the .pth file of a network: untiled, float32, without padding."""
    compat.install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from realesrgan import RealESRGANer

    module, fixed_parameters = architectures._CLASSES[arch]
    network = compat.load_attribute(module, arch)(**fixed_parameters, **parameters)
    return RealESRGANer(4, str(path), model=network, tile=0, pre_pad=0, half=False, device="cpu")


def by_reference(reference: "RealESRGANer", file: Path) -> np.ndarray:
    """The upscaled file, (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey."""
    out, _ = reference.enhance(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), outscale=4)
    return out if out.ndim == 2 else np.dstack([out[..., 2::-1], out[..., 3:]])


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(abs(a.astype(np.int64) - b).max())


def photos() -> dict[str, np.ndarray]:
    """Six photos as (h, w, 3) uint8 RGB, at most 96 x 96: two noisy, three sharp, one grey."""
    noisy = {name: cv2.imread(str(_NOISY / f"{name}.jpg"))[..., ::-1] for name in ("coffee", "portrait")}
    return {
        "coffee": noisy["coffee"][90:130, 140:204],
        "portrait": noisy["portrait"][30:126, 122:148],
        "chelsea": skimage.data.chelsea()[104:149, 158:215],
        "astronaut": skimage.data.astronaut()[92:148, 190:238],
        "rocket": skimage.data.rocket()[60:124, 304:344],
        "camera": np.dstack([skimage.data.camera()[80:128, 200:248]] * 3),
    }
