"""This project and its peers, side by side, in one run."""

from pathlib import Path

from restorer import models, sources


def present(name: str) -> tuple[str, Path]:
    """Name and file of a model of the table, or of its copy in custom/. Exits where there is neither."""
    weights = models.weights_folder()
    for model in models.available(weights):
        if model.name in (name, f"custom/{name}") and sources.is_present(model, weights):
            return model.name, models.path(model, weights)
    raise SystemExit(f"bench: put {name}.pth into {weights} or {weights / 'custom'}")
