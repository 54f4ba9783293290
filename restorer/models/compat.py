"""Import parts of basicsr, realesrgan, gfpgan and facexlib quickly, and on current versions of torchvision.

basicsr 1.4.2 imports `torchvision.transforms.functional_tensor`, a private module that torchvision 0.17
removed; the one function it uses still exists in the public module.

The packages' own __init__ files import everything they contain (scipy.stats, torchvision.ops, training code),
which takes 8 seconds for one class of 100 lines. load_attribute() imports a class without running them.
"""

import importlib
import importlib.util
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_REMOVED_MODULE = "torchvision.transforms.functional_tensor"
_IMPORT_LOCK = threading.Lock()  # the stubs in sys.modules are visible to every thread
_PACKAGES = (
    "basicsr",
    "basicsr.archs",
    "basicsr.data",
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
    if _REMOVED_MODULE in sys.modules:
        return
    stub = types.ModuleType(_REMOVED_MODULE)
    stub.rgb_to_grayscale = _rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[_REMOVED_MODULE] = stub


def _rgb_to_grayscale(*args: object, **kwargs: object) -> object:
    from torchvision.transforms import functional  # importing it takes seconds

    return functional.rgb_to_grayscale(*args, **kwargs)  # type: ignore[arg-type]


def load_attribute(module: str, name: str) -> Callable[..., Any]:
    """Return a class or function of one module, e.g. ("basicsr.archs.rrdbnet_arch", "RRDBNet")."""
    importlib.import_module("torch")  # must not see the stubs while it is imported
    with _IMPORT_LOCK, _stub_packages():
        return getattr(importlib.import_module(module), name)


@contextmanager
def _stub_packages() -> Iterator[None]:
    """Replace the packages with empty ones on the same paths; afterwards they look never imported."""
    if "basicsr" in sys.modules:  # already imported in full
        yield
        return
    stubs: dict[str, types.ModuleType] = {}
    for package in _PACKAGES:
        # training needs basicsr only; importing another absent package raises as usual
        if package.startswith("basicsr") or importlib.util.find_spec(package.partition(".")[0]):
            stubs[package] = types.ModuleType(package)
            stubs[package].__path__ = [str(_folder(package))]
    # arch_util and metric_util import these names from basicsr.utils
    stubs["basicsr.utils"].get_root_logger = logging.getLogger  # type: ignore[attr-defined]
    stubs["basicsr.utils"].__getattr__ = _from_color_util  # type: ignore[method-assign]
    sys.modules.update(stubs)
    torchvision = _lazy_module("torchvision")
    sys.modules.setdefault("torchvision", torchvision)
    distutils = _distutils_stubs()
    sys.modules.update(distutils)
    try:
        yield
    finally:
        for name in distutils:
            sys.modules.pop(name, None)
        _remove_packages()  # and what a failed import left, as basicsr's does without install()
        if sys.modules.get("torchvision") is torchvision:
            del sys.modules["torchvision"]


def _distutils_stubs() -> dict[str, types.ModuleType]:
    """Return stubs of what arch_util imports and Python 3.12 has only with setuptools."""
    with suppress(ModuleNotFoundError):
        importlib.import_module("distutils.version")
        return {}
    version = types.ModuleType("distutils.version")
    version.LooseVersion = str  # type: ignore[attr-defined]
    return {"distutils": types.ModuleType("distutils"), "distutils.version": version}


def _from_color_util(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module("basicsr.utils.color_util"), name)


def _remove_packages() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in _PACKAGES:
            del sys.modules[name]


def _folder(package: str) -> Path:
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    return Path(spec.origin).parent.joinpath(*rest)


def _lazy_module(name: str) -> types.ModuleType:
    """Return a stub that imports the real module when an attribute is first read."""
    stub = types.ModuleType(name)

    def load_attribute(attribute: str) -> object:
        if sys.modules.get(name) is stub:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stub.__getattr__ = load_attribute  # type: ignore[method-assign]
    return stub
