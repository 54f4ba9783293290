"""Options and limits of a restoration. Every default is written here and nowhere else."""

import math
import numbers
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import NamedTuple

from .errors import InvalidOption, UnsuitableOption

AUTO_CPU_MEGAPIXELS = 0.5  # on a CPU, "auto" uses the best model for photos up to this size
PRESETS = ("auto", "best", "fast")  # accepted instead of a model's name
ANIMATED_FORMATS = ("same", "webp", "png")  # in which an animation can be written; "same" includes gif
SMALLEST_TILE, _LARGEST_TILE = 32, 4096
CPU_BACKENDS = ("openvino", "ncnn", "torch", "bfloat16")
BFLOAT16, VULKAN = "cpu:bfloat16", "vulkan"
# "cuda:1" is the second GPU. "cpu" uses the fastest backend; "cpu:ncnn" fixes it
DEVICES = ("cuda", "mps", "cpu", *(f"cpu:{backend}" for backend in CPU_BACKENDS), VULKAN)
CHOICES = {
    "format": ("same", "png", "jpeg", "webp", "tiff", "avif", "jxl"),
    "colour": ("off", "auto", "on", "neutral"),
    "face_enhance": ("auto", "on", "off"),
    "face_mask": ("ellipse", "parsing"),
    "repair": ("off", "auto", "on"),
}
FORMATS = CHOICES["format"]
PRINT_DPI = 300
_INCHES = {"mm": 1 / 25.4, "cm": 1 / 2.54, "in": 1.0}
_PRINT_SIZE = re.compile(r"(\d+\.?\d*)\s*x\s*(\d+\.?\d*)\s*(mm|cm|in)", re.IGNORECASE)
RANGES = {
    "outscale": (1, 8),
    "long_side": (0, 100_000),
    "dpi": (0, 10_000),
    "strength": (0, 1),
    "denoise": (0, 1),
    "colour_strength": (0, 1),
    "quality": (1, 100),
    "max_bytes": (0, 2**40),
    "face_strength": (0, 1),
    "repair_sensitivity": (0, 1),
}
_KINDS = {str: "a string", float: "a number", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Options:
    """Options of one restoration. Raises InvalidOption for a value outside its range.

    model          "best" is RealESRGAN_x4plus, or RealESRGAN_x2plus up to 2x if it is present; "fast" is the
                   fastest general-purpose model present; "auto" is "best" on a GPU and for small photos,
                   and a faster model for large photos on a CPU. Any other name that `models` lists means
                   exactly that model
    outscale       1 to 8: output side = input side x outscale, whatever the network's own scale
    long_side      longer side of the result in pixels, instead of `outscale`; 0: by `outscale`
    print_size     "30x20cm", also in mm or in: the result fits on such a print, upright or across, at `dpi`;
                   replaces `outscale`. A photo that has more pixels keeps them
    dpi            resolution stored in the result, even without metadata; more with print_size if the
                   photo has more pixels. 0: 300 with print_size, otherwise that of the photo
    strength       0 to 1: blends the photo enlarged by bicubic interpolation (0) and the restored one (1)
    denoise        0 to 1: how much noise realesr-general-x4v3 removes; 1 is the model as published.
                   Other models have no second checkpoint to blend with and reject values below 1
    colour         "auto" corrects fading and its colour casts where they are certain, "on" always; toned
                   black-and-white photos, such as sepia, keep their tone, which "neutral" removes too
    colour_strength  0 to 1: blends the photo's colours (0) and the corrected ones (1)
    autopilot      look at each photo and set `colour` and face_enhance, where they have their defaults, as
                   its look suggests; size and model stay as they are
    tile           largest side of a tile in input pixels, 32 to 4096, or 0 to choose it; halved until it
                   fits in memory. It changes the memory needed, and on a CPU not the result; ncnn has its
                   own tiles
    format         "same" keeps the input's format if it can be written
    quality        1 to 100, for the lossy formats (jpeg, webp, avif, jxl); 100 is lossless in jxl alone
    max_bytes      largest file in bytes, for which the quality is lowered; 0: no limit
    keep_metadata  keep EXIF, XMP, IPTC, comments and the photo's resolution; the colour profile, and a
                   resolution that `dpi` or print_size sets, are always stored
    remove_gps     remove coordinates and place names from EXIF, XMP, IPTC, PNG text and GeoTIFF, with them
                   the maker note, which may hold both, and Photoshop's resources except rights and
                   paths; titles, captions, keywords and comments stay
    face_enhance   "on" restores faces, "off" does not; "auto" does if the models are present or can be
                   downloaded, and otherwise says so in the result; true and false are accepted too
    face_model     the network that restores faces, of those that `models` lists
    face_detector  the network that detects faces, yunet or retinaface
    face_strength  0 to 1: blends the upscaled face (0) and the restored one (1)
    face_mask      the pasted part of a crop: an "ellipse" around the face, or its outline by "parsing"
    face_large     also restore faces with more pixels than the network's output; they lose detail
    repair         "on" fills dust, hairs, scratches and stains that are detected, before enlarging; "auto"
                   only where damage is seen with confidence; "off" does not look for any
    repair_sensitivity  0 to 1: how much of what may be damage is filled
    """

    model: str = "auto"
    outscale: float = 4.0
    long_side: int = 0
    print_size: str = ""
    dpi: int = 0
    strength: float = 1.0
    denoise: float = 1.0
    colour: str = "off"
    colour_strength: float = 1.0
    autopilot: bool = False
    tile: int = 0
    format: str = "same"
    quality: int = 95
    max_bytes: int = 0
    keep_metadata: bool = True
    remove_gps: bool = False
    face_enhance: str = "auto"
    face_model: str = "GFPGANv1.3"
    face_detector: str = "yunet"
    face_strength: float = 1.0
    face_mask: str = "ellipse"
    face_large: bool = False
    repair: str = "off"
    repair_sensitivity: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.face_enhance, bool):
            object.__setattr__(self, "face_enhance", "on" if self.face_enhance else "off")
        for field in fields(self):
            kind = type(field.default)
            _check_type(field.name, getattr(self, field.name), kind)
            try:
                object.__setattr__(self, field.name, kind(getattr(self, field.name)))  # numpy scalars too
            except OverflowError as error:
                raise InvalidOption(f"{field.name} is too large") from error
        for name, (low, high) in RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:  # also false for NaN
                raise InvalidOption(f"{name} is {value}; it must be from {low} to {high}")
        if self.print_size:
            _print_inches(self.print_size)
            if self.long_side:
                raise InvalidOption(
                    f"long_side is {self.long_side} and print_size {self.print_size}; use one"
                )
        if self.tile and not SMALLEST_TILE <= self.tile <= _LARGEST_TILE:
            allowed = f"from {SMALLEST_TILE} to {_LARGEST_TILE}, or 0 for one that fits in memory"
            raise InvalidOption(f"tile is {self.tile}; it must be {allowed}")
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InvalidOption(f"{name} is {value!r}; it must be one of {', '.join(choices)}")

    def changed(self, changes: dict[str, object]) -> "Options":
        """Return a copy with other values by name. Raises InvalidOption for unknown names and bad values."""
        if unknown := sorted(set(changes) - set(self.names())):
            raise InvalidOption(f"unknown option {unknown[0]!r}; use one of {', '.join(self.names())}")
        return replace(self, **changes)  # type: ignore[arg-type]

    def sized(self, width: int, height: int) -> "Options":
        """Return the options for a photo of that size: outscale and dpi instead of long_side and print_size.

        Raises UnsuitableOption if the outscale would not be from 1 to 8.
        """
        long, short = max(width, height), max(1, min(width, height))
        if self.long_side:
            scale = self.long_side / max(1, long)
            if not 1 <= scale <= 8:
                raise UnsuitableOption(
                    f"a long side of {self.long_side} pixels is {scale:.1f} times the photo's {long}; "
                    f"choose from {long} to {8 * long}"
                )
            return replace(self, outscale=scale, long_side=0)
        if self.print_size:
            inches = _print_inches(self.print_size)
            own_dpi = max(long / max(inches), short / min(inches))  # of the photo on that print
            dpi = self.dpi or PRINT_DPI
            if dpi > 8 * own_dpi:
                raise UnsuitableOption(
                    f"print_size is {self.print_size}; at {dpi} dpi it needs {dpi / own_dpi:.1f} times the "
                    f"photo's {width} x {height} pixels; the limit is 8, at {math.floor(8 * own_dpi)} dpi"
                )
            scale = max(1.0, dpi / own_dpi)
            dpi = min(round(scale * own_dpi), RANGES["dpi"][1])
            return replace(self, outscale=scale, print_size="", dpi=dpi)
        return self

    @property
    def by_photo(self) -> bool:
        """Whether the outscale depends on the photo, see sized()."""
        return bool(self.long_side or self.print_size)

    @property
    def size_mark(self) -> str:
        """What is added to the name of a result: "_4x", "_2000px" or "_30x20cm"."""
        if self.long_side:
            return f"_{self.long_side}px"
        if self.print_size:
            return "_" + re.sub(r"\s", "", self.print_size.lower())
        return f"_{self.outscale:g}x"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    @cache
    def descriptions(cls) -> dict[str, str]:
        """Return what the docstring of this class says of each option, by name."""
        documented = re.findall(r"^    (\w+) {2,}(.+(?:\n {8,}.+)*)", cls.__doc__ or "", re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in documented}


class Sequences(NamedTuple):
    """What is restored of a file with several pictures, beside the first.

    pages   all pages of TIFF and all pictures of HEIC, each to a result of its own
    frames  all frames of animated GIF, WebP and PNG, to an animation
    """

    pages: bool = False
    frames: bool = False


FIRST = Sequences()


@dataclass(frozen=True)
class Limits:
    """Largest photo and result, in pixels (width x height)."""

    input_pixels: int = 100_000_000
    output_pixels: int = 400_000_000


def _print_inches(text: str) -> tuple[float, float]:
    """Return both sides of a print in inches. Raises InvalidOption."""
    match = _PRINT_SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidOption(f"print_size is {text!r}; write it as 30x20cm, with mm, cm or in")
    unit = _INCHES[match[3].lower()]
    sides = float(match[1]) * unit, float(match[2]) * unit
    if not 0.1 <= min(sides) <= max(sides) <= 1000:
        raise InvalidOption(f"print_size is {text!r}; the limits are 0.1 and 1000 inches (2.5 mm and 25 m)")
    return sides


def _check_type(name: str, value: object, kind: type) -> None:
    accepted = {float: numbers.Real, int: numbers.Integral}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InvalidOption(f"{name} is {value!r}; it must be {_KINDS[kind]}")
