"""This project and its peers, side by side, in one run."""

from pathlib import Path

from restorer.models import registry, sources
from restorer.models.sources import Source

_SHARED = Path(__file__).resolve().parents[2] / "shared/weights"


def here(file: str) -> Path | None:
    """A file of weights in the folder of models, its custom/, or a folder of weights shared by projects."""
    weights = registry.weights_folder()
    paths = (folder / file for folder in (weights, weights / "custom", _SHARED))
    return next((path for path in paths if path.is_file()), None)


def locate(name: str) -> Source | None:
    """The weights of a model, as the app finds them, or of its copy NAME.pth, see here()."""
    weights = registry.weights_folder()
    for model in registry.available(weights):
        if model.name in (name, f"custom/{name}") and (source := sources.locate(model, weights)):
            return source
    file = here(f"{name}.pth")
    return Source(file, sources.CUSTOM, file.stat().st_size, "") if file else None


def present(name: str) -> Source:
    """The weights of a model, see locate(). Exits where there are none."""
    if source := locate(name):
        return source
    weights = registry.weights_folder()
    raise SystemExit(f"bench: put {name}.pth into {weights} or {weights / 'custom'}")
