"""What evaluate.py is asked: its options, and what they mean."""

import argparse
import dataclasses
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .. import output_paths
from ..errors import InvalidOption, RestoreError
from ..images import photo
from ..options import DEVICE_HELP, Options
from ..pipeline import Restorer
from ..version import __version__
from . import cases, degradation, summary
from .cases import Setup, Variant

_END = " \u2063"  # of names that files.plan() makes, to be taken off again: no file ends so
_TRUTH_VALUES = {"true": True, "on": True, "false": False, "off": False}


def check_together(parsed: argparse.Namespace) -> None:
    """Raise InvalidOption for options of which one would make the other mean nothing."""
    given = {name for name in ("gt", "recipe", "seeds", "scale") if getattr(parsed, name) is not None}
    given |= {name for name in ("published", "no_reference") if getattr(parsed, name)}
    for one, others in (
        ("no_reference", {"gt", "recipe", "seeds", "published"}),
        ("gt", {"recipe", "seeds", "scale"}),
        ("published", {"recipe", "seeds"}),
    ):
        if one in given and (useless := sorted(given & others)):
            names = " and ".join(f"--{name}".replace("_", "-") for name in (one, useless[0]))
            raise InvalidOption(f"{names} contradict each other: leave one away")


def variants(parsed: argparse.Namespace) -> list[Variant]:
    """Of "a,b:denoise=0.5,folder": a model, one with settings, a weights folder.

    Raises UnknownModel, and InvalidOption for settings that cannot be.
    """
    restorer = cache(lambda weights: Restorer(weights=weights, device=parsed.device))
    variants = []
    for spec in map(str.strip, parsed.models.split(",")):
        name, *settings = re.split(r":(?=\w+=)", spec)
        is_folder = Path(name).is_dir()
        options = _options(settings) | ({} if is_folder else {"model": name})
        made = restorer(name if is_folder else parsed.weights_dir)
        made.model(made.options.changed(options))  # an unknown name ends the call
        variants.append(Variant(spec, made, options))
    taken = [cases.INPUT, summary.BICUBIC, cases.ORIGINAL]
    folders = [*taken, *(variant.folder for variant in variants)]
    if len(set(folders)) < len(folders):
        raise InvalidOption(f"two of {parsed.models} would have one name, or one that is taken")
    return variants


def _options(settings: list[str]) -> dict[str, object]:
    """Texts like "denoise=0.5" as options, by name."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Options)}
    found: dict[str, object] = {}
    for name, _, text in (setting.partition("=") for setting in settings):
        if name in ("outscale", "format"):
            raise InvalidOption(f"{name} cannot be set for a model: use --scale; results are PNG files")
        kind = kinds.get(name, str)
        try:
            found[name] = _TRUTH_VALUES[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            raise InvalidOption(f"{name} is {text!r}, which it cannot be") from error
    return found


class NamedPhoto(NamedTuple):
    """A photo, the name that its results bear, and its original or what is amiss with that."""

    name: str
    source: Path
    original: Path | None = None
    amiss: str = ""


def photos(given: list[Path], output: Path, gt: Path | None) -> list[NamedPhoto]:
    """Every photo; with a folder of originals, those that are none themselves. Raises InvalidOption."""
    if missing := [str(named) for named in given if not named.exists()]:
        raise InvalidOption(f"{missing[0]} does not exist: name photos, or a folder of them")
    output.mkdir(parents=True, exist_ok=True)
    tasks = output_paths.plan(given, output, mark=_END, form="png")
    photos = [
        NamedPhoto(task.target.relative_to(output).as_posix().removesuffix(_END), task.source)
        for task in tasks
    ]
    if gt is not None:
        photos = [one for one in (_with_original(one, gt) for one in photos) if not _is_original(one)]
        originals = Counter(one.original.resolve() for one in photos if one.original)
        for one in photos:
            if one.original and originals[one.original.resolve()] > 1:
                raise InvalidOption(f"{one.original} would be the original of more than one photo")
    if not photos:
        raise InvalidOption(f"no photos found in {', '.join(map(str, given))}")
    return photos


def _with_original(one: NamedPhoto, gt: Path) -> NamedPhoto:
    """Its original lies in the folder of its own name below `gt`, where there is one."""
    below = gt / Path(one.name).parent
    try:
        return one._replace(original=cases.find_original(one.source, below if below.is_dir() else gt))
    except InvalidOption as error:
        return one._replace(amiss=str(error))


def _is_original(one: NamedPhoto) -> bool:
    """Whether it is the larger one of a pair, found because both lie in one folder."""
    if one.original is None:
        return False
    try:
        own, other = (photo.size(path.read_bytes()) for path in (one.source, one.original))
    except (RestoreError, OSError):
        return False  # told when its turn comes
    return own.width * own.height > other.width * other.height


def folder(given: Path | None) -> Path | None:
    """The folder of originals. Raises InvalidOption where it is none."""
    if given is not None and not given.is_dir():
        raise InvalidOption(f"{given} is not a folder: name the one with the originals")
    return given


def seeds(text: str) -> list[int]:
    """Of "0,1". Raises InvalidOption."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"seeds is {text!r}; it must be whole numbers: 0,1,2") from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidOption(f"seeds is {text!r}; no seed may be negative, or there twice")
    return seeds


def thresholds(given: list[str]) -> dict[str, float]:
    """Of ["ssim=0.8"], by metric. Raises InvalidOption."""
    found = {}
    for text in given:
        name, _, number = text.partition("=")
        metric = summary.METRICS.get(name)
        if metric is None or metric.better == 0:
            known = ", ".join(name for name, metric in summary.METRICS.items() if metric.better)
            raise InvalidOption(f"{name!r} is no metric to fail for; they are {known}")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise InvalidOption(f"{text!r} should be like {name}=0.8")
    return found


def provenance(parsed: argparse.Namespace, setup: Setup, seeds: list[int], count: int) -> dict[str, object]:
    """How the figures came about."""
    if not setup.reference:
        how = "as they are, without originals"
    elif not setup.degrades:
        how = f"as they are, beside their originals in {parsed.gt}"
    elif setup.published:
        how = f"made {setup.scale:g} times smaller by MATLAB's bicubic"
    else:
        how = f"{degradation.RECIPES[setup.recipe].about} ({setup.recipe}), {setup.scale:g} times smaller"
    told: dict[str, object] = {
        "photos": f"{count} of {', '.join(map(str, parsed.photos[:3]))}{' ...' if parsed.photos[3:] else ''}",
        "judged": how,
        "bicubic": "MATLAB's" if setup.published else "OpenCV's",
        "models": parsed.models.split(","),
        "software": f"Neural Image Restore {__version__}",
    }
    if setup.degrades and not setup.published:
        told["seeds"] = seeds
    if len(seeds) > 1:
        told["pictures"] = f"of the photos, with seed {seeds[0]}; figures below them are means of all seeds"
    if setup.reference:
        told["border"] = "as many pixels as the scale do not count; Y is BT.601 luma"
    return told


def parser() -> argparse.ArgumentParser:
    """The parser of evaluate.py."""
    recipes = "; ".join(f"{name}: {recipe.about}" for name, recipe in degradation.RECIPES.items())
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Judge restorations: figures, a page.")
    parser.add_argument(
        "photos", nargs="*", type=Path, default=[Path("test_inputs")], metavar="PHOTO", help="files, folders"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("test_results"), metavar="DIR")
    parser.add_argument(
        "--models",
        default=Options.model,
        metavar="A,B",
        help="what is compared: names that 'python -m restorer models' lists, folders of weights, both with "
        "settings: auto,realesr-general-x4v3:denoise=0.5:face_enhance=off,my/weights (%(default)s)",
    )
    parser.add_argument("--recipe", help=f"what makes the photos worse: {recipes}")
    parser.add_argument("--scale", type=float, help=f"how much smaller, then larger ({Options.outscale:g})")
    parser.add_argument("--seeds", metavar="0,1", help="several give a spread (0)")
    parser.add_argument(
        "--published",
        action="store_true",
        help="the protocol of papers: smaller by MATLAB's bicubic alone, and that for comparison",
    )
    parser.add_argument("--gt", type=Path, metavar="DIR", help="originals by name; photos stay as they are")
    parser.add_argument(
        "--no-reference", action="store_true", help="without originals: NIQE, sharpness, blocks, consistency"
    )
    parser.add_argument(
        "--fail-under", action="append", default=[], metavar="ssim=0.8", help="exit with 1 if a mean is worse"
    )
    parser.add_argument("--weights-dir", metavar="DIR", help="where the models' files are (weights/)")
    parser.add_argument("--device", help=DEVICE_HELP)
    return parser
