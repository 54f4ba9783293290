"""Say what is wrong with a photo and suggest options, from samples of it, in a fraction of a second."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

import cv2
import numpy as np

from .errors import BadWeights, WeightsUnavailable
from .faces import detect
from .faces.detect import Detector
from .images import colour
from .images.formats import jpeg
from .images.photo import Photo
from .images.resample import round_to, shrunk, to_uint8
from .inference.upscale import is_opaque, visible_pixels
from .models import registry, sources
from .networks import Networks
from .options import Options
from .repair.pipeline import DETECTOR

_TILE, _TILES = 256, 3  # side in pixels of the squares that are measured, and their number along each axis
# Immerkaer, "Fast Noise Variance Estimation", 1996; the mean in flat blocks, which hold hardly any texture
_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
_NOISE_BLOCK, _FLATTEST = 16, 15  # pixels, percentile
# Of the deviation of independent noise in three channels that luma shows, as measured here
_LUMA_SHARE = 0.62
# Noise at half the size, as a share: white noise of 8 levels has 0.5 to 1 (over texture), texture mostly
# more. Coarse grain has more too, so only noise below 8 levels can be texture, which has up to 6
_NOISE_LEFT, _NO_TEXTURE = 1.0, 8.0
# In levels of 255: sharp photographs that were never compressed measure up to 2.8
_NOISE, _STRONG_NOISE = 5.0, 12.0
_LOW_QUALITY = 60  # of JPEG: blocks show in smooth areas
# Steps between blocks over those within; JPEG of quality 75 has up to 1.2, of 45 the median 1.5
_BLOCKS = 1.3
_BLUR, _BLUR_EDGES, _LEAST_EDGE = 0.83, 99.5, 3.0  # share, percentile, levels
_FACES_SIDE = 640  # pixels of the copy in which faces are searched
# Chosen on 56 photographs of the training set and RealSRSet: 43 had more such areas with drawn damage, and 2
# of 280 copies without it, as they are, small, with noise or as JPEG files
_DAMAGE_SIDE = 512
_DAMAGED, _LEAST_AREA, _AREAS, _FEWEST = 0.7, 10, 10.0, 12  # probability, pixels, per 100,000 pixels, areas
_SIZES = ((1200, 4.0), (2400, 2.0))  # longer side in pixels below which to enlarge, and how many times

DamageDetector = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Finding:
    """Something about a photo.

    name    "noise", "jpeg", "blur", "damage", "faded", "grey", "toned" or "faces"
    text    in words for users
    reason  the measurement behind it
    """

    name: str
    text: str
    reason: str


@dataclass(frozen=True)
class Look:
    """What a look at a photo found.

    width, height  in pixels
    findings       what is wrong, then what is in it
    options        the suggested options by name, as Options takes them
    """

    width: int
    height: int
    findings: tuple[Finding, ...]
    options: dict[str, object]

    @property
    def line(self) -> str:
        """The findings and the suggestion in one line."""
        words = ", ".join([*(one.text for one in self.findings), f"{self.width} × {self.height}"])
        return (
            f"{words[0].upper()}{words[1:]}. Suggested: {', '.join(map(_option_text, self.options.items()))}"
        )

    def autopilot(self, options: Options) -> dict[str, object]:
        """Return the suggestions that change options from their defaults; no size, on which names depend."""
        default = vars(Options())
        return {
            name: value
            for name, value in self.options.items()
            if name != "outscale" and getattr(options, name) == default[name] != value
        }

    def applied(self, options: Options) -> tuple[Options, str]:
        """Return options as autopilot() changes them, and a note for the result's warnings."""
        changed = self.autopilot(options)
        return options.changed(changed), self.note(changed)

    def note(self, changed: dict[str, object]) -> str:
        """Return the findings, and the options that autopilot() changed, for the warnings of a result."""
        findings = ", ".join(one.text for one in self.findings)
        options = ", ".join(map(_option_text, changed.items()))
        return f"autopilot: {findings or 'nothing found'}; {options or 'no option changed'}"

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "line": self.line}


def examine(
    photo: Photo,
    *,
    quality: int | None = None,
    face_detector: Detector | None = None,
    damage_detector: DamageDetector | None = None,
) -> Look:
    """Look at a photo.

    quality          of the JPEG file it was read from, see formats.jpeg.quality()
    face_detector    detects faces; None: no faces are looked for, and face_enhance is not suggested
    damage_detector  returns the probability (h, w), 0..1, that a pixel of (h, w, 3) uint8 is damaged; None:
                     no damage is looked for
    """
    fading = colour.measure(photo.pixels, photo.alpha)
    findings = list(_findings(photo, fading, quality))
    areas = _damage(photo, damage_detector) if damage_detector else 0.0
    if areas > _AREAS:
        reason = f"{areas:.0f} damaged areas per 100,000 pixels of a copy of {_DAMAGE_SIDE} pixels"
        findings.append(Finding("damage", "possibly damaged", reason))
    if fading.monochrome:
        toned = Finding("toned", "toned black and white", f"one hue, chroma {fading.chroma:.0f}")
        plain = Finding("grey", "black and white", f"chroma {fading.chroma:.1f}")
        findings.append(toned if fading.toned else plain)
    long = max(photo.width, photo.height)
    options: dict[str, object] = {"outscale": next((times for side, times in _SIZES if long < side), 1.0)}
    if fading.share:
        options["colour"] = "auto"
    if face_detector:
        faces = len(detect.detect_faces(_copy(photo, _FACES_SIDE), face_detector, caps=(_FACES_SIDE,)))
        options["face_enhance"] = "auto" if faces else "off"
        if faces:
            text = "1 face" if faces == 1 else f"{faces} faces"
            findings.append(Finding("faces", text, f"found in a copy of {_FACES_SIDE} pixels"))
    return Look(photo.width, photo.height, tuple(findings), options)


def look_with(networks: Networks, photo: Photo, source: bytes | Photo) -> Look:
    """Look at a photo with the detectors that are present; nothing is downloaded.

    source  the file that it was decoded from, or the photo itself
    """
    from .repair import damage  # torch

    faces: Detector | None = None
    damages: DamageDetector | None = None
    if sources.is_present(registry.find("yunet", networks.weights, "detect"), networks.weights):
        with suppress(WeightsUnavailable, BadWeights):
            faces = networks.face_network("yunet", "detect", backoff=True)
    with suppress(WeightsUnavailable, BadWeights):
        detector = networks.repair_network(DETECTOR)
        # On a CPU, where a tile takes long, damage is detected concurrently
        lock = None if next(detector.parameters()).device.type == "cpu" else networks.lock
        damages = partial(damage.detect, detector=detector, single=True, lock=lock)
    quality = jpeg.quality(source) if isinstance(source, bytes) else None
    return examine(photo, quality=quality, face_detector=faces, damage_detector=damages)


def _findings(photo: Photo, fading: colour.Fading, quality: int | None) -> Iterator[Finding]:
    squares = [cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32) for square in _squares(photo)]
    if fading.share:
        black, white = 100 * fading.light
        yield Finding("faded", "faded", f"its light is from {black:.0f} to {white:.0f} % of white")
    noise = _noise(squares)
    if noise > _NOISE and not _is_texture(squares, noise):
        text = "strong noise" if noise > _STRONG_NOISE else "light noise"
        yield Finding("noise", text, f"a deviation of {noise:.0f} levels of 255 in flat areas")
    blocks = _blockiness(squares)
    if quality is not None and quality < _LOW_QUALITY:
        yield Finding("jpeg", "strong JPEG compression", f"quality {quality} of 100")
    elif blocks > _BLOCKS:
        yield Finding("jpeg", "JPEG blocks", f"steps between blocks {1 + blocks:.1f} times those within")
    if (share := _sharpness_left(squares)) > _BLUR:
        yield Finding("blur", "blurred", f"more blur leaves {100 * share:.0f} % of its edges")


def _squares(photo: Photo) -> list[np.ndarray]:
    """Return evenly spaced squares of a photo as uint8, at multiples of 8 pixels, as JPEG's blocks are."""
    tops, lefts = (
        sorted({int(start) // 8 * 8 for start in np.linspace(0, max(0, side - _TILE), _TILES)})
        for side in photo.pixels.shape[:2]
    )
    squares = []
    for top, left in itertools.product(tops, lefts):
        part = slice(top, top + _TILE), slice(left, left + _TILE)
        alpha = None if photo.alpha is None else photo.alpha[part]
        visible = visible_pixels(Photo(photo.pixels[part], alpha, photo.meta))
        squares.append(to_uint8(np.ascontiguousarray(visible)))
    return squares


def _copy(photo: Photo, side: int) -> np.ndarray:
    """Return the pixels averaged to at most `side` a side, with transparent areas filled in."""
    if photo.alpha is None or is_opaque(photo.alpha):
        return shrunk(photo.pixels, side)
    seen = photo.alpha > 0
    share = shrunk(seen.astype(np.uint8) * 255, side)
    total = shrunk(np.where(seen[..., None], photo.pixels, 0), side).astype(np.float32)
    pixels = total * (255 / np.maximum(share, 1).astype(np.float32)[..., None])
    return visible_pixels(Photo(round_to(pixels, photo.pixels.dtype), share, photo.meta))


def _noise(squares: list[np.ndarray]) -> float:
    """Return the deviation of the noise in flat areas, in levels of 255."""
    return float(np.percentile(np.concatenate([*map(_block_noise, squares)]), _FLATTEST)) / _LUMA_SHARE


def _is_texture(squares: list[np.ndarray], noise: float) -> bool:
    """Return whether noise may be texture: it is weak, and no weaker at half the size."""
    if noise > _NO_TEXTURE:
        return False
    return _noise([shrunk(square, max(square.shape) // 2) for square in squares]) >= _NOISE_LEFT * noise


def _block_noise(plane: np.ndarray) -> np.ndarray:
    """Return the deviation of the noise in each block of a plane, without those near black and white."""
    size = _NOISE_BLOCK
    rows, columns = (max(1, side // size) for side in plane.shape)
    detail = np.abs(cv2.filter2D(plane, -1, _MASK)) * np.float32(np.sqrt(np.pi / 2))
    area = (columns, rows)
    crop = slice(rows * size), slice(columns * size)
    deviations, means = (cv2.resize(one[crop], area, interpolation=cv2.INTER_AREA) for one in (detail, plane))
    visible = (means > 20) & (means < 235)
    return deviations[visible] if visible.any() else deviations.ravel()


def _blockiness(squares: list[np.ndarray]) -> float:
    """Return by what share third differences are larger at one phase of 8 pixels than at the others."""
    excess = []
    for axis in (0, 1):
        profiles = []
        for plane in squares:
            lines = np.abs(np.diff(plane, 3, axis=axis)).mean(axis=1 - axis)
            profiles.append([lines[phase::8].mean() if len(lines) > 7 else 0.0 for phase in range(8)])
        profile = np.mean(profiles, axis=0)
        others = np.median(np.delete(profile, profile.argmax()))
        excess.append((profile.max() - others) / (others + 0.5))
    return float(np.mean(excess))


def _sharpness_left(squares: list[np.ndarray]) -> float:
    """Return the share of the strongest edges' steepness that a blur leaves (after Crete et al., 2007)."""
    strongest = []
    for sigma in (0.8, np.hypot(0.8, 1.6)):
        steps = []
        for plane in squares:
            smooth = cv2.GaussianBlur(plane, (0, 0), sigma)
            steps += [np.abs(np.diff(smooth, axis=axis)).ravel() for axis in (0, 1)]
        all_steps = np.concatenate(steps)
        strongest.append(float(np.percentile(all_steps, _BLUR_EDGES)) if all_steps.size else 0.0)
    return strongest[1] / strongest[0] if strongest[0] > _LEAST_EDGE else 0.0


def _damage(photo: Photo, detector: DamageDetector) -> float:
    """Return the number of damaged areas per 100,000 pixels of a small copy, 0 if they are few."""
    small = to_uint8(_copy(photo, _DAMAGE_SIDE))
    marked = (detector(small) > _DAMAGED).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(marked, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    count = int((areas >= _LEAST_AREA).sum())
    return count / marked.size * 100_000 if count >= _FEWEST else 0.0


def _option_text(option: tuple[str, object]) -> str:
    name, value = option
    if name == "outscale":
        return f"{value:g}x"
    if name == "face_enhance":
        return "faces off" if value == "off" else "faces on"
    return f"{name} {value}"
