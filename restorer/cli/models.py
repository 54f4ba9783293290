"""`restorer models`: list and download models."""

import argparse
from pathlib import Path

from ..errors import UnknownModel
from ..models import registry, sources
from ..tables import align_columns

_DIGITS = 12  # of a SHA-256 in the list; receipts and the server's /models have all 64


def run(parsed: argparse.Namespace) -> int:
    """Print each model with its kind, scale, size, licence, source of weights, and purpose."""
    weights = registry.weights_folder(parsed.weights_dir)
    if parsed.fetch:
        _fetch(parsed.fetch, weights)
    rows = [("MODEL", "KIND", "SCALE", "MB", "LICENCE", "WEIGHTS", "SHA256", "FOR")]
    for model in registry.available(weights):
        source = sources.locate(model, weights)
        sha256 = source.sha256 if source else model.sha256
        rows.append(
            (
                model.name,
                model.kind,
                f"{model.scale}x" if model.kind == "upscale" and model.scale else "",
                f"{(source or model).bytes / 1e6:.1f}",
                model.licence,
                source.kind if source else "to download",
                sha256[:_DIGITS] or "not checked",
                model.about,
            )
        )
    print(align_columns(rows, left=len(rows[0])))
    print(f"\nWeights folder: {weights}")
    return 0


def _fetch(names: list[str], weights: Path) -> None:
    from ..models import download

    table = {model.name: model for model in registry.MODELS}
    for name in (registry.RENAMED.get(name, name) for name in names):
        if name not in table:
            raise UnknownModel(f"unknown model {name!r}; use one of {', '.join(table)}")
        source = download.ensure(table[name], weights)
        print(f"{name}: {source.path} ({source.kind})", flush=True)
