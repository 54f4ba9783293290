"""How good the restorations are: `python evaluate.py` turns test_inputs/ into a report in test_results/.

Each photo is made worse by a seeded recipe, restored, and compared with what it was; bicubic beside it.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from restorer import evaluation, evaluation_cli, files, metrics, photo, report, report_page
from restorer.columns import aligned, as_csv
from restorer.errors import BadWeights, InvalidOption, RestoreError, UnknownModel, WeightsUnavailable
from restorer.evaluation import Setup, Variant
from restorer.options import Options

_WARNINGS = 9  # that are told; the rows have all


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all well, 1 a photo failed or a figure is too low, 2 wrong usage."""
    parsed = evaluation_cli.parser().parse_args(arguments)
    try:
        return evaluate(parsed)
    except RestoreError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2 if isinstance(error, (InvalidOption, UnknownModel)) else 1
    except OSError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: stopped; there is no report", file=sys.stderr)
        return 130


def evaluate(parsed: argparse.Namespace) -> int:
    """Restore and compare everything, write the report and print its figures."""
    evaluation_cli.check_together(parsed)
    floors = evaluation_cli.floors(parsed.fail_under)
    missing = "" if parsed.no_reference else metrics.lpips_missing()
    setup = Setup(
        scale=Options.outscale if parsed.scale is None else parsed.scale,
        recipe=parsed.recipe or Setup.recipe,
        published=parsed.published,
        degrades=not parsed.no_reference and parsed.gt is None,
        reference=not parsed.no_reference,
        lpips=not parsed.no_reference and not missing,
    )
    seeds = evaluation_cli.seeds(parsed.seeds or "0")
    variants = evaluation_cli.variants(parsed)
    photos = evaluation_cli.photos(parsed.photos, parsed.output, evaluation_cli.folder(parsed.gt))
    for name in ("report.csv", "report.json", "report.html"):  # an older one would be taken for ours
        (parsed.output / name).unlink(missing_ok=True)
    rows, failed = _all_compared(photos, variants, setup, seeds, parsed.output)
    if not rows:
        return 1
    told = evaluation_cli.told(parsed, setup, seeds, len(photos))
    told |= {"LPIPS": f"left out, {missing}"} if missing else {}
    told |= {"failed": [f"{name}: {why}" for name, why in failed.items()]} if failed else {}
    warnings = dict.fromkeys(str(row["warnings"]) for row in rows if row.get("warnings"))
    told |= {"warnings": list(warnings)[:_WARNINGS]} if warnings else {}
    picture = partial(_picture, {one.name: one for one in photos}, variants, setup, seeds, parsed.output)
    files.write_atomic(parsed.output / "report.csv", as_csv(rows))
    files.write_atomic(parsed.output / "report.json", report.as_json(rows, told))
    page = report_page.page(rows, told, picture, variants[0].name)
    files.write_atomic(parsed.output / "report.html", page)
    summary = report.summed_up(rows)
    print(aligned(report.table(summary), left=2))
    for name in ("LPIPS", "warnings", "failed"):
        if name in told:
            print(f"{name}: {told[name]}")
    print(f"report: {parsed.output / 'report.html'}")
    low = list(_too_low(summary, floors))
    for line in low:
        print(f"evaluate: {line}", file=sys.stderr)
    return 1 if failed or low else 0


def _all_compared(
    photos: list[evaluation_cli.Named], variants: list[Variant], setup: Setup, seeds: list[int], output: Path
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """A row for each photo, seed and variant; and why photos failed, by name."""
    rows: list[dict[str, object]] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(photos) * len(seeds) * len(variants), disable=None, leave=False) as bar:
        for one_of in photos:
            bar.set_description_str(one_of.name)
            found = []
            try:
                if one_of.amiss:
                    raise InvalidOption(one_of.amiss)
                for seed in seeds:
                    one = evaluation.case(one_of.source, one_of.original, setup, seed=seed)
                    place = _seeded(one_of.name, seed, seeds)
                    for row in evaluation.compared(one, variants, setup, output, place):
                        found.append({"photo": one_of.name, "seed": seed, **row})
                        bar.update(row["variant"] != report.PLAIN)
            except (WeightsUnavailable, BadWeights):
                raise  # nothing would fare better
            except (RestoreError, OSError) as error:
                failed[one_of.name] = str(error)
                bar.write(f"{one_of.source}: failed, {error}", file=sys.stderr)
            else:
                rows += found
    return rows, failed


def _seeded(name: str, seed: int, seeds: list[int]) -> str:
    return f"{name}_seed{seed}" if len(seeds) > 1 else name


def _picture(
    photos: Mapping[str, evaluation_cli.Named],
    variants: list[Variant],
    setup: Setup,
    seeds: list[int],
    output: Path,
    name: str,
) -> report_page.Picture:
    """What is to be seen of a photo, with the first seed."""
    place = _seeded(name, seeds[0], seeds)
    versions = {}
    for folder, called in [(report.PLAIN, report.PLAIN), *((v.folder, v.name) for v in variants)]:
        versions[called] = photo.decode(evaluation.kept(output, folder, place).read_bytes()).pixels
    truth = evaluation.case(photos[name].source, photos[name].original, setup, seed=seeds[0]).truth
    if truth is not None:
        height, width = versions[report.PLAIN].shape[:2]
        versions[evaluation.ORIGINAL] = truth[:height, :width]
    return report_page.Picture(name, versions)


def _too_low(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]], floors: Mapping[str, float]
) -> Iterator[str]:
    """What is worse than asked for; of metrics that are better when they are lower, what is higher."""
    for variant in [name for name in summary if name != report.PLAIN]:
        for name, floor in floors.items():
            found = summary[variant].get(name)
            if found is None:
                yield f"{variant} has no {name}, of which {floor:g} was asked for"
            elif report.METRICS[name].better * (found["mean"] - floor) < 0:
                yield f"{variant} has a mean {name} of {found['mean']:.4g}, worse than {floor:g}"


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
