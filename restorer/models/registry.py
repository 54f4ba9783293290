"""The table of models and the paths of their weights files."""

import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnknownModel
from ..options import PRESETS

_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download/"
_GFPGAN = "https://github.com/TencentARC/GFPGAN/releases/download/"
_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download/"
_YUNET = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"  # commit of the file with the SHA-256 below
_BSD, _GFPGAN_LICENCE = "BSD-3-Clause", "Apache-2.0, parts non-commercial"
_CUSTOM_SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class Model:
    """A row of the table.

    name      unique name, as in Options.model
    kind      "upscale", "face" (restores a face crop), "detect" or "parse" (both of faces), "damage"
              (detects it), "fill" or "colour" (estimates fading)
    scale     upscaling factor of the network; 0 if not applicable or known only from the file
    bytes     size of the file
    sha256    of the file; "" for a custom file, which is not verified
    url       official release; "" for custom models and the built-in ones
    licence   of the weights
    about     one-line description for the user
    mirror    Hugging Face repository with the same file, or ""
    revision  commit of the mirror that has it, or "" if unknown
    denoise_model  name of the model that a denoise strength below 1 blends in, or ""
    local     file of a model without a release: custom/... or that of a built-in model
    """

    name: str
    kind: str
    scale: int
    bytes: int
    sha256: str
    url: str
    licence: str
    about: str
    mirror: str = ""
    revision: str = ""
    denoise_model: str = ""
    local: str = ""

    @property
    def file(self) -> str:
        """Return the file's path relative to its folder, see path()."""
        return self.local or self.url.rpartition("/")[2]


MODELS = (
    Model(
        "RealESRGAN_x4plus",
        "upscale",
        4,
        67_040_989,
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        _ESRGAN + "v0.1.0/RealESRGAN_x4plus.pth",
        _BSD,
        "photographs; the most detail, slow without a GPU",
        mirror="rippertnt/upscale",
    ),
    Model(
        "RealESRGAN_x2plus",
        "upscale",
        2,
        67_061_725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        _ESRGAN + "v0.2.1/RealESRGAN_x2plus.pth",
        _BSD,
        "photographs at twice the size, in a quarter of the time",
        mirror="rippertnt/upscale",
    ),
    Model(
        "RealESRNet_x4plus",
        "upscale",
        4,
        67_040_989,
        "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        _ESRGAN + "v0.1.1/RealESRNet_x4plus.pth",
        _BSD,
        "photographs; smoother, invents less",
    ),
    Model(
        "RealESRGAN_x4plus_anime_6B",
        "upscale",
        4,
        17_938_799,
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        _ESRGAN + "v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        _BSD,
        "drawings and anime",
        mirror="rippertnt/upscale",
    ),
    Model(
        "realesr-general-x4v3",
        "upscale",
        4,
        4_885_111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        _ESRGAN + "v0.2.5.0/realesr-general-x4v3.pth",
        _BSD,
        "any picture, fast, with adjustable denoising",
        mirror="rippertnt/upscale",
        denoise_model="realesr-general-wdn-x4v3",
    ),
    Model(
        "realesr-general-wdn-x4v3",
        "upscale",
        4,
        4_885_111,
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        _ESRGAN + "v0.2.5.0/realesr-general-wdn-x4v3.pth",
        _BSD,
        "like realesr-general-x4v3, but keeps grain and noise",
    ),
    Model(
        "realesr-animevideov3",
        "upscale",
        4,
        2_504_012,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        _ESRGAN + "v0.2.5.0/realesr-animevideov3.pth",
        _BSD,
        "frames of animated films; very fast",
    ),
    Model(
        "restore-lite-2-x4",
        "upscale",
        4,
        727_448,
        "3ffd4da239a35ea44186ef3724826c3c4e43349ff6c2837c7f95c78cf9ea22c1",
        "",
        "Apache-2.0",
        "any picture, three times as fast as realesr-general-x4v3",
        local="restore-lite-2-x4.safetensors",
    ),
    Model(
        "GFPGANv1.3",
        "face",
        1,
        348_632_874,
        "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
        _GFPGAN + "v1.3.0/GFPGANv1.3.pth",
        _GFPGAN_LICENCE,
        "faces; natural",
        mirror="leonelhs/gfpgan",
    ),
    Model(
        "GFPGANv1.4",
        "face",
        1,
        348_632_874,
        "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
        _GFPGAN + "v1.3.0/GFPGANv1.4.pth",
        _GFPGAN_LICENCE,
        "faces; more detail, less faithful",
    ),
    Model(
        "GFPGANv1.2",
        "face",
        1,
        348_632_874,
        "29e25ee90c170f4231163f4c83df6b59c968b73f3ce00cb884015ae005db083c",
        _GFPGAN + "v1.3.0/GFPGANv1.2.pth",
        _GFPGAN_LICENCE,
        "faces; sharper, with more make-up",
        mirror="leonelhs/gfpgan",
    ),
    Model(
        "RestoreFormer",
        "face",
        1,
        290_785_322,
        "07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0",
        _GFPGAN + "v1.3.4/RestoreFormer.pth",
        "Apache-2.0",
        "faces; a transformer network",
    ),
    Model(
        "yunet",
        "detect",
        0,
        232_589,
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        f"https://huggingface.co/opencv/face_detection_yunet/resolve/{_YUNET}/face_detection_yunet_2023mar.onnx",
        "MIT",
        "detects faces in milliseconds",
        mirror="opencv/face_detection_yunet",
        revision=_YUNET,
    ),
    Model(
        "retinaface",
        "detect",
        0,
        109_497_761,
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        _FACEXLIB + "v0.1.0/detection_Resnet50_Final.pth",
        "MIT",
        "detects faces, including small and rotated ones",
    ),
    Model(
        "parsenet",
        "parse",
        0,
        85_331_193,
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        _FACEXLIB + "v0.2.2/parsing_parsenet.pth",
        "CC-BY-NC-SA-4.0",
        "more precise face outlines; optional",
    ),
    Model(
        "damage-detector",
        "damage",
        0,
        2_893_176,
        "6f1c17e52333d5bb4d88cfc56284285daf33826eb31880ee748b54ac8f909120",
        "",
        "Apache-2.0",
        "detects dust, hairs, scratches and stains",
        local="damage-detector.safetensors",
    ),
    Model(
        "damage-filler",
        "fill",
        0,
        2_121_240,
        "8fb9eda34c5adf0e7cfec33ae707372be2c94018fbbd74ea35500754455a4c21",
        "",
        "Apache-2.0",
        "fills damaged pixels",
        local="damage-filler.safetensors",
    ),
    Model(
        "big-lama",
        "fill",
        0,
        205_669_692,
        "344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9",
        "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
        "Apache-2.0",
        "fills damage wider than 60 pixels",
    ),
    Model(
        "fading-estimator",
        "colour",
        0,
        36_426,
        "cfac6012b85dc23420e2e6d38f7ee74e92dca6400a2c69d933453d1a048f59bc",
        "",
        "Apache-2.0",
        "estimates how the colours of a photo have faded",
        local="fading-estimator.safetensors",
    ),
)

BUILT_IN = "restore-lite-2-x4"
RENAMED = {"restore-lite-x4": BUILT_IN}  # former names, accepted by find()
_PROJECT_WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def weights_folder(folder: str | Path | None = None) -> Path:
    """Return `folder`, else the environment variable RESTORER_WEIGHTS, else weights/ next to the package."""
    configured = folder or os.environ.get("RESTORER_WEIGHTS")
    return Path(configured).expanduser() if configured else _PROJECT_WEIGHTS


def path(model: Model, weights: Path) -> Path:
    """Return the path of the model's file: in `weights`, or next to the package for a built-in model."""
    built_in = model.sha256 and not model.url
    return (_PROJECT_WEIGHTS if built_in else weights) / model.file


def available(weights: Path) -> tuple[Model, ...]:
    """Return the models of the table, then those in weights/custom sorted by name.

    If two custom files differ only in their suffix, the .safetensors file wins.
    """
    files = dict(_custom_files(weights / "custom"))
    custom = {
        f"custom/{file.stem}": file
        for suffix in _CUSTOM_SUFFIXES
        for file in sorted(files)
        if file.suffix.lower() == suffix
    }
    return MODELS + tuple(_custom(name, custom[name], files[custom[name]], custom) for name in sorted(custom))


def _custom_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each visible file and its size in bytes; tolerates files that disappear meanwhile."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if not entry.name.startswith(".") and entry.is_file():
                    yield folder / entry.name, entry.stat().st_size


def find(name: str, weights: Path, kind: str = "upscale") -> Model:
    """Return the model of exactly that name, or former name, and kind.

    Raises UnknownModel with the closest name.
    """
    name = RENAMED.get(name, name)
    names = {model.name: model for model in available(weights) if model.kind == kind}
    if name in names:
        return names[name]
    choices = ", ".join([*PRESETS, *names] if kind == "upscale" else names)
    if other := next((model for model in MODELS if model.name == name), None):
        raise UnknownModel(f"{name} is a {other.kind!r} model, not {kind!r}; use one of {choices}")
    lowered = {known.lower(): known for known in names}
    closest = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[closest[0]]!r}? Available: " if closest else "use one of "
    raise UnknownModel(f"unknown model {name!r}; {hint}{choices}")


def _custom(name: str, file: Path, size: int, others: dict[str, Path]) -> Model:
    denoise_model = "custom/" + {model.name: model.denoise_model for model in MODELS}.get(file.stem, "")
    return Model(
        name,
        "upscale",
        0,
        size,
        "",
        "",
        "its own",
        "your own model",
        denoise_model=denoise_model if denoise_model in others else "",
        local=f"custom/{file.name}",
    )
