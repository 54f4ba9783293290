"""The table of models and the paths of their weights files."""

import csv
import difflib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnknownModel
from ..options import PRESETS

_CUSTOM_SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True)
class Model:
    """A row of the table.

    name      unique name, as in Options.model
    kind      "upscale", "face" (restores a face crop), "detect" or "parse" (both of faces), "damage"
              (detects it), "fill" or "colour" (estimates fading)
    scale     upscaling factor of the network; 0 if not applicable or known only from the file
    bytes     size of the file
    sha256    of the file; "" for a custom file, which is not verified
    url       official release; "" for custom models and the built-in ones
    licence   of the weights
    about     one-line description for the user
    mirror    Hugging Face repository with the same file, or ""
    revision  commit of the mirror that has it, or "" if unknown
    denoise_model  name of the model that a denoise strength below 1 blends in, or ""
    local     file of a model without a release: custom/... or that of a built-in model
    """

    name: str
    kind: str
    scale: int
    bytes: int
    sha256: str
    url: str
    licence: str
    about: str
    mirror: str = ""
    revision: str = ""
    denoise_model: str = ""
    local: str = ""

    @property
    def file(self) -> str:
        """Return the file's path relative to its folder, see path()."""
        return self.local or self.url.rpartition("/")[2]


def _table() -> tuple[Model, ...]:
    """Read models.csv, one model per row."""
    with Path(__file__).with_name("models.csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["scale"], row["bytes"] = int(row["scale"]), int(row["bytes"])
    return tuple(Model(**row) for row in rows)


MODELS = _table()
BUILT_IN = "restore-lite-2-x4"
RENAMED = {"restore-lite-x4": BUILT_IN}  # former names, accepted by find()
_PROJECT_WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def weights_folder(folder: str | Path | None = None) -> Path:
    """Return `folder`, else the environment variable RESTORER_WEIGHTS, else weights/ next to the package."""
    configured = folder or os.environ.get("RESTORER_WEIGHTS")
    return Path(configured).expanduser() if configured else _PROJECT_WEIGHTS


def path(model: Model, weights: Path) -> Path:
    """Return the path of the model's file: in `weights`, or next to the package for a built-in model."""
    built_in = model.sha256 and not model.url
    return (_PROJECT_WEIGHTS if built_in else weights) / model.file


def available(weights: Path) -> tuple[Model, ...]:
    """Return the models of the table, then those in weights/custom sorted by name.

    If two custom files differ only in their suffix, the .safetensors file wins.
    """
    files = dict(_custom_files(weights / "custom"))
    custom = {
        f"custom/{file.stem}": file
        for suffix in _CUSTOM_SUFFIXES
        for file in sorted(files)
        if file.suffix.lower() == suffix
    }
    return MODELS + tuple(_custom(name, custom[name], files[custom[name]], custom) for name in sorted(custom))


def _custom_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield each visible file and its size in bytes; tolerates files that disappear meanwhile."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if not entry.name.startswith(".") and entry.is_file():
                    yield folder / entry.name, entry.stat().st_size


def find(name: str, weights: Path, kind: str = "upscale") -> Model:
    """Return the model of exactly that name, or former name, and kind.

    Raises UnknownModel with the closest name.
    """
    name = RENAMED.get(name, name)
    names = {model.name: model for model in available(weights) if model.kind == kind}
    if name in names:
        return names[name]
    choices = ", ".join([*PRESETS, *names] if kind == "upscale" else names)
    if other := next((model for model in MODELS if model.name == name), None):
        raise UnknownModel(f"{name} is a {other.kind!r} model, not {kind!r}; use one of {choices}")
    lowered = {known.lower(): known for known in names}
    closest = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[closest[0]]!r}? Available: " if closest else "use one of "
    raise UnknownModel(f"unknown model {name!r}; {hint}{choices}")


def _custom(name: str, file: Path, size: int, others: dict[str, Path]) -> Model:
    denoise_model = "custom/" + {model.name: model.denoise_model for model in MODELS}.get(file.stem, "")
    return Model(
        name,
        "upscale",
        0,
        size,
        "",
        "",
        "its own",
        "your own model",
        denoise_model=denoise_model if denoise_model in others else "",
        local=f"custom/{file.name}",
    )
