"""Import parts of basicsr, realesrgan, gfpgan and facexlib on today's packages, and quickly.

basicsr 1.4.2 wants `torchvision.transforms.functional_tensor`, a private module that torchvision 0.17
removed; the one function it takes from it lives on in the public module.

The packages' own __init__ files import everything they hold (scipy.stats, torchvision.ops, the training
code): 8 seconds, before a photo, for one class of 100 lines. So a class is loaded without running them.
"""

import importlib
import importlib.util
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PRIVATE = "torchvision.transforms.functional_tensor"
_IMPORTING = threading.Lock()  # what the packages look like meanwhile is seen by every thread
_PACKAGES = (
    "basicsr",
    "basicsr.archs",
    "basicsr.metrics",
    "basicsr.utils",
    "facexlib",
    "facexlib.detection",
    "facexlib.parsing",
    "gfpgan",
    "gfpgan.archs",
    "realesrgan",
    "realesrgan.archs",
)


def install() -> None:
    """Make `import basicsr`, `import realesrgan` and `import gfpgan` work."""
    if _PRIVATE in sys.modules:
        return
    from torchvision.transforms import functional

    stand_in = types.ModuleType(_PRIVATE)
    stand_in.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[_PRIVATE] = stand_in


def load(module: str, name: str) -> Callable[..., Any]:
    """A class or function of one module, say ("basicsr.archs.rrdbnet_arch", "RRDBNet")."""
    importlib.import_module("torch")  # must not meet the stand-ins when it looks around
    with _IMPORTING, _without_init_files():
        return getattr(importlib.import_module(module), name)


@contextmanager
def _without_init_files() -> Iterator[None]:
    """Let the packages stand in as bare folders; afterwards everything is as if they were never imported."""
    if "basicsr" in sys.modules:  # imported in full by someone else: there is nothing left to save
        yield
        return
    bare = {package: types.ModuleType(package) for package in _PACKAGES}
    for package, module in bare.items():
        module.__path__ = [str(_folder(package))]
    bare["basicsr.utils"].get_root_logger = logging.getLogger  # type: ignore[attr-defined]  # arch_util takes it
    bare["basicsr.utils"].__getattr__ = _from_color_util  # type: ignore[method-assign]  # for metric_util
    sys.modules.update(bare)
    stand_in = _on_demand("torchvision")
    sys.modules.setdefault("torchvision", stand_in)
    try:
        yield
    finally:
        _forget()  # and the debris of an import that failed half way, as basicsr's does without install()
        if sys.modules.get("torchvision") is stand_in:
            del sys.modules["torchvision"]


def _from_color_util(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module("basicsr.utils.color_util"), name)


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in _PACKAGES:
            del sys.modules[name]


def _folder(package: str) -> Path:
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    return Path(spec.origin).parent.joinpath(*rest)


def _on_demand(name: str) -> types.ModuleType:
    """A stand-in that gives way to the real module when something is first asked of it."""
    module = types.ModuleType(name)

    def ask(attribute: str) -> object:
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    module.__getattr__ = ask  # type: ignore[method-assign]
    return module
