"""Resolve "best", "fast" and "auto" by scale, by the models present and, for "auto", by the photo's size."""

import os
from pathlib import Path

from ..errors import InvalidOption
from ..options import AUTO_CPU_MEGAPIXELS, Options
from . import registry
from .registry import Model
from .sources import is_present

GENERAL = "realesr-general-x4v3"  # 5 MB, so "auto" may download it
_BEST, _BEST_X2 = "RealESRGAN_x4plus", "RealESRGAN_x2plus"
# In order of preference; the last one, the built-in model, is always present
_FALLBACKS = (GENERAL, "RealESRNet_x4plus", _BEST_X2, registry.BUILT_IN)
_FAST = (registry.BUILT_IN, GENERAL)


def auto_cpu_megapixels(value: float | None = None) -> float:
    """Return `value`, else the environment variable AUTO_CPU_MEGAPIXELS, else 0.5. Raises InvalidOption."""
    text = os.environ.get("AUTO_CPU_MEGAPIXELS", "").strip()
    try:
        megapixels = value if value is not None else float(text) if text else AUTO_CPU_MEGAPIXELS
    except ValueError as error:
        raise InvalidOption(f"AUTO_CPU_MEGAPIXELS is {text!r}; it must be a number") from error
    if not megapixels >= 0:
        raise InvalidOption(f"AUTO_CPU_MEGAPIXELS is {megapixels}; it must be 0 or more")
    return megapixels


def best(weights: Path, options: Options, *, fetch: bool = True) -> Model:
    """Return the model with the most detail that supports the options.

    fetch  return RealESRGAN_x4plus even if it is absent; otherwise the best of the models present
    """
    if options.denoise < 1:
        return registry.find(GENERAL, weights)
    preferred = (_BEST_X2, _BEST) if options.outscale <= 2 else (_BEST,)
    return _first_present(preferred if fetch else preferred + _FALLBACKS, weights)


def fast(weights: Path, options: Options) -> Model:
    """Return the fastest general-purpose model present that supports the options."""
    return registry.find(GENERAL, weights) if options.denoise < 1 else _first_present(_FAST, weights)


def large_photo_model(weights: Path, options: Options, *, fetch: bool) -> Model:
    """Return the model that "auto" uses for a large photo on a CPU.

    fetch  return realesr-general-x4v3 even if it is absent; otherwise fall back to that of fast()
    """
    general = registry.find(GENERAL, weights)
    return general if fetch or is_present(general, weights) else fast(weights, options)


def _first_present(names: tuple[str, ...], weights: Path) -> Model:
    """Return the first model that is present, else the last one."""
    candidates = [registry.find(name, weights) for name in names]
    return next((model for model in candidates if is_present(model, weights)), candidates[-1])
