"""What a caller may choose, and the only place where a default is written."""

import numbers
from dataclasses import dataclass, fields, replace

from .errors import InvalidOption

AUTO_CPU_MEGAPIXELS = 0.5  # of a photo on a CPU, up to which "auto" takes the best model
PRESETS = ("auto", "best", "fast")  # in place of a model's name
FORMATS = ("same", "png", "jpeg", "webp", "tiff", "avif")
SMALLEST_TILE = 32
# "cuda:1" is the second of several. The ways to compute on a CPU are tried where only "cpu" is asked for
DEVICES = ("cuda", "mps", "cpu", "cpu:torch", "cpu:winograd", "cpu:openvino", "cpu:ncnn")
BFLOAT16, VULKAN = "cpu:bfloat16", "vulkan"
DEVICES += (BFLOAT16, VULKAN)
DEVICE_HELP = f"{', '.join(DEVICES)} (the fastest available)"
FACE_ENHANCE = ("auto", "on", "off")
FACE_MASKS = ("ellipse", "parsing")
_KINDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Options:
    """The choices for one photo. Raises InvalidOption for a value outside its range.

    model          "best" takes RealESRGAN_x4plus, or RealESRGAN_x2plus up to 2x if it is present; "fast" the
                   fastest general-purpose model present; "auto" takes "best" on a GPU and for small photos,
                   and a faster model for large photos on a CPU. Any other name means exactly that model
    outscale       1 to 8: output side = input side x outscale, whatever the network's own scale
    denoise        0 to 1: how much noise the general model removes; 1 is the model as published.
                   Other models have no second checkpoint to blend with and refuse a value below 1
    tile           side of a tile in input pixels, 32 or more; 0 chooses by the free memory
    format         "same" keeps the input's where it can be written
    quality        1 to 100, of the lossy formats (jpeg, webp, avif)
    keep_metadata  carry EXIF, XMP and resolution over; the colour profile always stays
    remove_gps     leave out where the photo was taken
    face_enhance   "on" or True restores the faces, "off" or False leaves them; "auto" does if the models are
                   present or can be fetched, and otherwise says so in the result
    face_model     the network that restores them
    face_detector  the one that finds them
    face_strength  0 to 1: a blend of the upscaled face (0) and the restored one (1)
    face_mask      what is put back of a crop: an "ellipse" about the face, or by "parsing" its outline
    face_large     also restore faces with more pixels than the network gives, which takes detail from them
    """

    model: str = "auto"
    outscale: float = 4.0
    denoise: float = 1.0
    tile: int = 0
    format: str = "same"
    quality: int = 95
    keep_metadata: bool = True
    remove_gps: bool = False
    face_enhance: str = "auto"
    face_model: str = "GFPGANv1.3"
    face_detector: str = "yunet"
    face_strength: float = 1.0
    face_mask: str = "ellipse"
    face_large: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.face_enhance, bool):
            object.__setattr__(self, "face_enhance", "on" if self.face_enhance else "off")
        for field in fields(self):
            kind = type(field.default)
            _is_of(field.name, getattr(self, field.name), kind)
            object.__setattr__(self, field.name, kind(getattr(self, field.name)))  # numpy's are numbers too
        _within("outscale", self.outscale, 1, 8)
        _within("denoise", self.denoise, 0, 1)
        _within("quality", self.quality, 1, 100)
        _within("face_strength", self.face_strength, 0, 1)
        if self.tile != 0:
            _within("tile", self.tile, SMALLEST_TILE, 4096)
        _one_of("format", self.format, FORMATS)
        _one_of("face_enhance", self.face_enhance, FACE_ENHANCE)
        _one_of("face_mask", self.face_mask, FACE_MASKS)

    def changed(self, changes: dict[str, object]) -> "Options":
        """These with other values by name. Raises InvalidOption for a name that is none, too."""
        if unknown := sorted(set(changes) - set(self.names())):
            raise InvalidOption(
                f"there is no option {unknown[0]!r}; the options are {', '.join(self.names())}"
            )
        return replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class Limits:
    """How large a photo may be, in pixels (width x height)."""

    input_pixels: int = 100_000_000
    output_pixels: int = 400_000_000


def _is_of(name: str, value: object, kind: type) -> None:
    takes = {float: numbers.Real, int: numbers.Integral}.get(kind, kind)
    if not isinstance(value, takes) or (isinstance(value, bool) and kind is not bool):
        raise InvalidOption(f"{name} is {value!r}; it must be {_KINDS[kind]}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidOption(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails this too
        raise InvalidOption(f"{name} is {value}; it must be from {low} to {high}")
