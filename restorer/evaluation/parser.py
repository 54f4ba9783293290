"""Parse and validate the options of evaluate.py."""

import argparse
import dataclasses
import math
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .. import output_paths
from ..atomic import check_writable
from ..errors import InvalidOption, RestoreError
from ..folders import LeftOut
from ..images import photo
from ..options import DEVICES, Options
from ..pipeline import Restorer
from ..version import SOFTWARE
from . import cases, degradation, summary
from .cases import Setup, Variant

_END = " \u2063"  # ends the names of output_paths.plan(), to be removed again; no real file name ends so
_BOOLEANS = {"true": True, "on": True, "false": False, "off": False}


def check_conflicts(parsed: argparse.Namespace) -> None:
    """Raise InvalidOption if one option would make another meaningless."""
    used = {name for name in ("gt", "recipe", "seeds", "scale") if getattr(parsed, name) is not None}
    used |= {name for name in ("published", "no_reference") if getattr(parsed, name)}
    for name, conflicting in (
        ("no_reference", {"gt", "recipe", "seeds", "published"}),
        ("gt", {"recipe", "seeds", "scale"}),
        ("published", {"recipe", "seeds"}),
    ):
        if name in used and (conflicts := sorted(used & conflicting)):
            first, second = (f"--{option}".replace("_", "-") for option in (name, conflicts[0]))
            raise InvalidOption(f"{first} and {second} contradict each other; use one of them")


def variants(parsed: argparse.Namespace) -> list[Variant]:
    """Parse "a,b:denoise=0.5,folder": models, optionally with settings, and weights folders.

    Raises UnknownModel, and InvalidOption for invalid settings and duplicate names.
    """
    restorer_for = cache(lambda weights: Restorer(weights=weights, device=parsed.device))
    variants = []
    for spec in map(str.strip, parsed.models.split(",")):
        name, *settings = re.split(r":(?=\w+=)", spec)
        is_folder = Path(name).is_dir()
        options = _options(settings) | ({} if is_folder else {"model": name})
        restorer = restorer_for(name if is_folder else parsed.weights_dir)
        restorer.model(restorer.options.changed(options))  # fail early for an unknown name
        variants.append(Variant(spec, restorer, options))
    folders = [cases.INPUT, summary.BICUBIC, cases.ORIGINAL, *(variant.folder for variant in variants)]
    if len(set(folders)) < len(folders):
        raise InvalidOption(
            f"two of {parsed.models} have the same folder name, or one named "
            f"{cases.INPUT}, {summary.BICUBIC} or {cases.ORIGINAL}; rename or remove one"
        )
    return variants


def _options(settings: list[str]) -> dict[str, object]:
    """Parse settings such as "denoise=0.5" to options by name."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Options)}
    options: dict[str, object] = {}
    for name, _, text in (setting.partition("=") for setting in settings):
        if name in ("outscale", "long_side", "print_size", "format"):
            raise InvalidOption(f"{name} cannot be set for a model; use --scale; results are PNG files")
        kind = kinds.get(name, str)
        try:
            options[name] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            expected = " or ".join(_BOOLEANS) if kind is bool else "a number"
            raise InvalidOption(f"{name} is {text!r}; use {expected}") from error
    return options


class NamedPhoto(NamedTuple):
    """A photo, the name of its results, and its original or the problem with that."""

    name: str
    source: Path
    original: Path | None = None
    problem: str = ""


def photos(paths: list[Path], output: Path, gt: Path | None, left_out: list[LeftOut]) -> list[NamedPhoto]:
    """Return every photo in `paths`; with a folder of originals, those that are not originals themselves.

    left_out  files and folders that are not photos, or cannot be read, are added here

    Raises InvalidOption if a path does not exist, if there is no photo, or if two share an original.
    """
    if gt is not None and not gt.is_dir():
        raise InvalidOption(f"{gt} is not a folder; name the folder of originals")
    if missing := [str(path) for path in paths if not os.path.exists(path)]:
        raise InvalidOption(f"{missing[0]} does not exist; name photos or a folder of photos")
    output.mkdir(parents=True, exist_ok=True)
    check_writable(output)
    tasks = output_paths.plan(paths, output, mark=_END, image_format="png", left_out=left_out)
    photos = [
        NamedPhoto(task.target.relative_to(output).as_posix().removesuffix(_END), task.source)
        for task in tasks
    ]
    if gt is not None:
        photos = [
            named for named in (_with_original(named, gt) for named in photos) if not _is_original(named)
        ]
        originals = Counter(named.original.resolve() for named in photos if named.original)
        for named in photos:
            if named.original and originals[named.original.resolve()] > 1:
                raise InvalidOption(f"{named.original} matches more than one photo; each needs its own")
    if not photos:
        raise InvalidOption(f"no photos found in {', '.join(map(str, paths))}")
    return photos


def _with_original(named: NamedPhoto, gt: Path) -> NamedPhoto:
    """Add the original from the subfolder of `gt` that mirrors the photo's if it exists, else from `gt`."""
    mirrored = gt / Path(named.name).parent
    try:
        original = cases.find_original(named.source, mirrored if mirrored.is_dir() else gt)
    except InvalidOption as error:
        return named._replace(problem=str(error))
    return named._replace(original=original)


def _is_original(named: NamedPhoto) -> bool:
    """Return whether this is the larger image of a pair, which happens if both are in one folder."""
    if named.original is None:
        return False
    try:
        own, other = (photo.size(path.read_bytes()) for path in (named.source, named.original))
    except (RestoreError, OSError):
        return False  # reported when the photo is read
    return own.width * own.height > other.width * other.height


def seeds(text: str) -> list[int]:
    """Parse "0,1". Raises InvalidOption."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"seeds is {text!r}; use whole numbers such as 0,1,2") from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidOption(f"seeds is {text!r}; use distinct numbers of 0 or more")
    return seeds


def thresholds(texts: list[str]) -> dict[str, float]:
    """Parse ["ssim=0.8"] to thresholds by metric. Raises InvalidOption."""
    result = {}
    for text in texts:
        name, _, number = text.partition("=")
        metric = summary.METRICS.get(name)
        if metric is None or metric.better == 0:
            known = ", ".join(name for name, metric in summary.METRICS.items() if metric.better)
            raise InvalidOption(f"no threshold for {name!r}; use one of {known}")
        try:
            result[name] = float(number)
        except ValueError:
            result[name] = math.nan
        if not math.isfinite(result[name]):
            raise InvalidOption(f"threshold is {text!r}; use {name}=0.8")
    return result


def provenance(parsed: argparse.Namespace, setup: Setup, seeds: list[int], count: int) -> dict[str, object]:
    """Return how the results were obtained, for the head of the report."""
    if not setup.reference:
        inputs = "the photos as they are, without originals"
    elif not setup.degrades:
        inputs = f"the photos as they are, compared with originals in {parsed.gt}"
    elif setup.published:
        inputs = f"downscaled {setup.scale:g} times by MATLAB's bicubic"
    else:
        inputs = f"{degradation.RECIPES[setup.recipe].about} ({setup.recipe}), {setup.scale:g} times smaller"
    result: dict[str, object] = {
        "photos": f"{count} of {', '.join(map(str, parsed.photos[:3]))}{' ...' if parsed.photos[3:] else ''}",
        "inputs": inputs,
        "bicubic": "MATLAB's" if setup.published else "OpenCV's",
        "models": parsed.models.split(","),
        "software": SOFTWARE,
    }
    if setup.degrades and not setup.published:
        result["seeds"] = seeds
    if len(seeds) > 1:
        result["images"] = f"those of seed {seeds[0]}; the metrics below them are means of all seeds"
    if setup.reference:
        result["border"] = "as many pixels as the scale are ignored at each edge; Y is BT.601 luma"
    return result


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of evaluate.py."""
    recipes = "; ".join(f"{name}: {recipe.about}" for name, recipe in degradation.RECIPES.items())
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Evaluate restorations: quality metrics and an HTML report."
    )
    parser.add_argument(
        "photos",
        nargs="*",
        type=Path,
        default=[Path("test_inputs")],
        metavar="PHOTO",
        help="files or folders",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("test_results"), metavar="DIR")
    parser.add_argument(
        "--models",
        default=Options.model,
        metavar="A,B",
        help="what to compare: names listed by 'python -m restorer models', or folders of weights, with "
        "optional settings: auto,realesr-general-x4v3:denoise=0.5:face_enhance=off,my/weights (%(default)s)",
    )
    parser.add_argument("--recipe", help=f"how to degrade the photos: {recipes}")
    parser.add_argument("--scale", type=float, help=f"downscale, then upscale by this ({Options.outscale:g})")
    parser.add_argument("--seeds", metavar="0,1", help="seeds of the recipe; several also give a spread (0)")
    parser.add_argument(
        "--published",
        action="store_true",
        help="follow the protocol of papers: downscale by MATLAB's bicubic only, and use it as the baseline",
    )
    parser.add_argument("--gt", type=Path, metavar="DIR", help="originals by name; photos are not degraded")
    parser.add_argument(
        "--no-reference",
        action="store_true",
        help="evaluate without originals: NIQE, sharpness, blockiness, consistency",
    )
    parser.add_argument(
        "--fail-under", action="append", default=[], metavar="ssim=0.8", help="exit with 1 if a mean is worse"
    )
    parser.add_argument("--weights-dir", metavar="DIR", help="folder of the models' files (weights/)")
    parser.add_argument("--device", help=f"{', '.join(DEVICES)} (the fastest available)")
    return parser
