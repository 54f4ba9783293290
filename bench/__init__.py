"""This project and its peers, side by side, in one run."""

from restorer import models, sources
from restorer.sources import Source


def present(name: str) -> Source:
    """The weights of a model of the table, or of its copy in custom/. Exits where there is neither."""
    weights = models.weights_folder()
    for model in models.available(weights):
        if model.name in (name, f"custom/{name}") and (source := sources.locate(model, weights)):
            return source
    raise SystemExit(f"bench: put {name}.pth into {weights} or {weights / 'custom'}")
