"""What "best", "fast" and "auto" mean: by scale, models present and, for "auto", the photo's size."""

import os
from pathlib import Path

from ..errors import InvalidOption
from ..options import AUTO_CPU_MEGAPIXELS, Options
from . import registry
from .registry import Model
from .sources import is_present

GENERAL = "realesr-general-x4v3"  # what "auto" may download, 5 MB
_BEST, _BEST_TWICE = "RealESRGAN_x4plus", "RealESRGAN_x2plus"
# For "auto" where the best is absent, and for "fast"; the built-in model is always there
_PRESENT = (GENERAL, "RealESRNet_x4plus", _BEST_TWICE, registry.BUILT_IN)
_FAST = (registry.BUILT_IN, GENERAL)


def auto_cpu_megapixels(value: float | None = None) -> float:
    """`value`, else the environment's AUTO_CPU_MEGAPIXELS, else 0.5. Raises InvalidOption."""
    text = os.environ.get("AUTO_CPU_MEGAPIXELS", "").strip()
    try:
        megapixels = value if value is not None else float(text) if text else AUTO_CPU_MEGAPIXELS
    except ValueError as error:
        raise InvalidOption(f"AUTO_CPU_MEGAPIXELS is {text!r}; it must be a number") from error
    if not megapixels >= 0:
        raise InvalidOption(f"AUTO_CPU_MEGAPIXELS is {megapixels}; it must be 0 or more")
    return megapixels


def best(weights: Path, options: Options, *, fetch: bool = True) -> Model:
    """The model with the most detail that can do what the options ask for.

    fetch  name RealESRGAN_x4plus even where it is absent; otherwise the best of the models present
    """
    if options.denoise < 1:
        return registry.find(GENERAL, weights)
    twice = (_BEST_TWICE,) if options.outscale <= 2 else ()
    return _first_present((*twice, _BEST) if fetch else (*twice, _BEST, *_PRESENT), weights)


def fast(weights: Path, options: Options) -> Model:
    """The fastest general-purpose model present that can do what the options ask for."""
    return registry.find(GENERAL, weights) if options.denoise < 1 else _first_present(_FAST, weights)


def for_large(weights: Path, options: Options, *, fetch: bool) -> Model:
    """What "auto" takes for a large photo on a CPU.

    fetch  name realesr-general-x4v3 where it is absent; otherwise the built-in model
    """
    general = registry.find(GENERAL, weights)
    return general if fetch or is_present(general, weights) else fast(weights, options)


def _first_present(names: tuple[str, ...], weights: Path) -> Model:
    """The first one that is present, else the last one."""
    candidates = [registry.find(name, weights) for name in names]
    return next((model for model in candidates if is_present(model, weights)), candidates[-1])
