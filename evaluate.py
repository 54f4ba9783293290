"""How good the restorations are: `python evaluate.py` turns test_inputs/ into a report in test_results/.

Each photo is made worse by a seeded recipe, restored, and compared with what it was; bicubic beside it.
"""

import argparse
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from tqdm import tqdm

from restorer import __version__, degrade, evaluation, files, metrics, photo, report
from restorer.errors import BadWeights, InvalidOption, RestoreError, UnknownModel, WeightsUnavailable
from restorer.evaluation import Setup, Variant
from restorer.options import Options
from restorer.pipeline import Restorer

_TRUTH_VALUES = {"true": True, "on": True, "false": False, "off": False}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all well, 1 a photo failed or a figure is too low, 2 wrong usage."""
    parsed = _parser().parse_args(arguments)
    try:
        return evaluate(parsed)
    except RestoreError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidOption, UnknownModel)) else 1
    except KeyboardInterrupt:
        print("evaluate: stopped; there is no report", file=sys.stderr)
        return 130


def evaluate(parsed: argparse.Namespace) -> int:
    """Restore and compare everything, write the report and print its figures."""
    floors = _floors(parsed.fail_under)
    missing = "" if parsed.no_reference else metrics.lpips_missing()
    setup = Setup(
        scale=parsed.scale,
        recipe=parsed.recipe,
        published=parsed.published,
        gt=_folder(parsed.gt),
        reference=not parsed.no_reference,
        lpips=not parsed.no_reference and not missing,
    )
    seeds = _seeds(parsed.seeds) if setup.degrades and not setup.published else [0]
    variants = _variants(parsed)
    sources = _sources(parsed.photos, parsed.output)
    rows, failed = _all_compared(sources, variants, setup, seeds, parsed.output)
    if not rows:
        return 1
    told = _told(parsed, setup, seeds, len(sources)) | ({"LPIPS": f"left out, {missing}"} if missing else {})
    told |= {"failed": [f"{name}: {why}" for name, why in failed.items()]} if failed else {}
    names = {name for name, _ in sources} - set(failed)
    sources = [(name, source) for name, source in sources if name in names]
    pictures = partial(_picture, dict(sources), variants, setup, seeds, parsed.output)
    report.write(parsed.output, rows, told, pictures, variants[0].name)
    summary = report.summed_up(rows)
    print(report.aligned(report.table(summary)))
    for name in set(told) & {"LPIPS", "failed"}:
        print(f"{name}: {told[name]}")
    print(f"report: {parsed.output / 'report.html'}")
    low = list(_too_low(summary, floors))
    for line in low:
        print(f"evaluate: {line}", file=sys.stderr)
    return 1 if failed or low else 0


def _all_compared(
    sources: list[tuple[str, Path]], variants: list[Variant], setup: Setup, seeds: list[int], output: Path
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """A row for each photo, seed and variant; and why photos failed, by name."""
    rows: list[dict[str, object]] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(sources) * len(seeds) * len(variants), disable=None, leave=False) as bar:
        for name, source in sources:
            bar.set_description_str(name)
            found = []
            try:
                for seed in seeds:
                    one = evaluation.case(source, setup, seed=seed)
                    for row in evaluation.compared(one, variants, setup, output, _seeded(name, seed, seeds)):
                        found.append({"photo": name, "seed": seed, **row})
                        bar.update(row["variant"] != evaluation.PLAIN)
            except (WeightsUnavailable, BadWeights):
                raise  # nothing would fare better
            except (RestoreError, OSError) as error:
                failed[name] = str(error)
                bar.write(f"{source}: failed, {error}", file=sys.stderr)
            else:
                rows += found
    return rows, failed


def _seeded(name: str, seed: int, seeds: list[int]) -> str:
    return f"{name}_seed{seed}" if len(seeds) > 1 else name


def _picture(
    sources: Mapping[str, Path],
    variants: list[Variant],
    setup: Setup,
    seeds: list[int],
    output: Path,
    name: str,
) -> report.Picture:
    """What is to be seen of a photo, with the first seed."""
    place = _seeded(name, seeds[0], seeds)
    versions = {}
    for folder, called in [(evaluation.PLAIN, evaluation.PLAIN), *((v.folder, v.name) for v in variants)]:
        versions[called] = photo.decode(evaluation.kept(output, folder, place).read_bytes()).pixels
    truth = evaluation.case(sources[name], setup, seed=seeds[0]).truth
    return report.Picture(name, versions if truth is None else {**versions, evaluation.ORIGINAL: truth})


def _variants(parsed: argparse.Namespace) -> list[Variant]:
    """Of "a,b:denoise=0.5,folder": a model, one with settings, a weights folder."""
    restorer = cache(lambda weights: Restorer(weights=weights, device=parsed.device))
    variants = []
    for spec in map(str.strip, parsed.models.split(",")):
        name, *settings = re.split(r":(?=\w+=)", spec)
        is_folder = Path(name).is_dir()
        options = _options(settings) | ({} if is_folder else {"model": name})
        made = restorer(name if is_folder else parsed.weights_dir)
        made.model(made.options.changed(options))  # an unknown name ends the call
        variants.append(Variant(spec, made, options))
    folders = [evaluation.INPUT, evaluation.PLAIN, *(variant.folder for variant in variants)]
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


def _sources(photos: list[Path], output: Path) -> list[tuple[str, Path]]:
    """Each photo with a name of its own, which its results bear too."""
    if missing := [str(named) for named in photos if not named.exists()]:
        raise InvalidOption(f"{missing[0]} does not exist: name photos, or a folder of them")
    tasks = files.plan(photos, output, mark=" ", form="png")
    if not tasks:
        raise InvalidOption(f"no photos found in {', '.join(map(str, photos))}")
    return [(task.target.relative_to(output).as_posix().rstrip(), task.source) for task in tasks]


def _folder(given: Path | None) -> Path | None:
    if given is not None and not given.is_dir():
        raise InvalidOption(f"{given} is not a folder: name the one with the originals")
    return given


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidOption(f"seeds is {text!r}; it must be whole numbers: 0,1,2") from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidOption(f"seeds is {text!r}; no seed may be negative, or there twice")
    return seeds


def _floors(given: list[str]) -> dict[str, float]:
    """Of ["ssim=0.8"], by metric."""
    found = {}
    for text in given:
        name, _, number = text.partition("=")
        metric = report.METRICS.get(name)
        if metric is None or metric.better == 0:
            known = ", ".join(name for name, metric in report.METRICS.items() if metric.better)
            raise InvalidOption(f"{name!r} is no metric to fail for; they are {known}")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise InvalidOption(f"{text!r} should be like {name}=0.8") from error
    return found


def _too_low(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]], floors: Mapping[str, float]
) -> Iterator[str]:
    """What is worse than asked for; of metrics that are better when they are lower, what is higher."""
    for variant in [name for name in summary if name != evaluation.PLAIN]:
        for name, floor in floors.items():
            found = summary[variant].get(name)
            if found is None:
                yield f"{variant} has no {name}, of which {floor:g} was asked for"
            elif report.METRICS[name].better * (found["mean"] - floor) < 0:
                yield f"{variant} has a mean {name} of {found['mean']:.4g}, worse than {floor:g}"


def _told(parsed: argparse.Namespace, setup: Setup, seeds: list[int], count: int) -> dict[str, object]:
    """How the figures came about."""
    if not setup.reference:
        how = "as they are, without originals"
    elif setup.gt is not None:
        how = f"as they are, beside their originals in {setup.gt}"
    elif setup.published:
        how = f"made {setup.scale:g} times smaller by MATLAB's bicubic"
    else:
        how = f"{degrade.RECIPES[setup.recipe].about} ({setup.recipe}), {setup.scale:g} times smaller"
    told: dict[str, object] = {
        "photos": f"{count} of {', '.join(map(str, parsed.photos[:3]))}{' ...' if parsed.photos[3:] else ''}",
        "judged": how,
        "bicubic": "MATLAB's" if setup.published else "OpenCV's",
        "models": parsed.models.split(","),
        "software": f"Neural Image Restore {__version__}",
    }
    if setup.degrades and not setup.published:
        told["seeds"] = seeds
    if setup.reference:
        told["border"] = "as many pixels as the scale do not count; Y is BT.601 luma"
    return told


def _parser() -> argparse.ArgumentParser:
    recipes = "; ".join(f"{name}: {recipe.about}" for name, recipe in degrade.RECIPES.items())
    parser = argparse.ArgumentParser(prog="evaluate.py", description=str(__doc__).partition("\n")[0])
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
    parser.add_argument("--recipe", default="default", help=f"what makes the photos worse: {recipes}")
    parser.add_argument(
        "--scale", type=float, default=Options.outscale, help="how much smaller, then larger (%(default)g)"
    )
    parser.add_argument("--seeds", default="0", metavar="0,1", help="several give a spread (%(default)s)")
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
    parser.add_argument("--device", help="cuda, mps or cpu (the fastest there is)")
    return parser


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
