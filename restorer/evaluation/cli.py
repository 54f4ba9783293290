"""Restore, compare and report: the command line of evaluate.py."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..atomic import write_atomic
from ..errors import BadWeights, InvalidOption, RestoreError, WeightsUnavailable
from ..exit_status import exit_status
from ..images import photo
from ..options import Options
from ..tables import align_columns, to_csv
from . import cases, html_report, metrics, parser, summary
from .cases import Setup, Variant

_WARNINGS = 9  # printed at most; the rows have all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run evaluate.py; return 0, 1 if a photo failed or a metric is too low, 2 for wrong usage."""
    parsed = parser.parser().parse_args(arguments)
    return exit_status("evaluate", lambda: evaluate(parsed), interrupted="stopped; no report was written")


def evaluate(parsed: argparse.Namespace) -> int:
    """Restore and compare everything, write the report and print its figures."""
    parser.check_together(parsed)
    floors = parser.thresholds(parsed.fail_under)
    missing = "" if parsed.no_reference else metrics.lpips_missing()
    setup = Setup(
        scale=Options.outscale if parsed.scale is None else parsed.scale,
        recipe=parsed.recipe or Setup.recipe,
        published=parsed.published,
        degrades=not parsed.no_reference and parsed.gt is None,
        reference=not parsed.no_reference,
        lpips=not parsed.no_reference and not missing,
    )
    seeds = parser.seeds(parsed.seeds or "0")
    variants = parser.variants(parsed)
    photos = parser.photos(parsed.photos, parsed.output, parser.folder(parsed.gt))
    for name in ("report.csv", "report.json", "report.html"):  # an older one would be taken for ours
        (parsed.output / name).unlink(missing_ok=True)
    rows, failed = _all_compared(photos, variants, setup, seeds, parsed.output)
    if not rows:
        return 1
    told = parser.provenance(parsed, setup, seeds, len(photos))
    told |= {"LPIPS": f"left out, {missing}"} if missing else {}
    told |= {"failed": [f"{name}: {why}" for name, why in failed.items()]} if failed else {}
    warnings = dict.fromkeys(str(row["warnings"]) for row in rows if row.get("warnings"))
    told |= {"warnings": list(warnings)[:_WARNINGS]} if warnings else {}
    picture = partial(_picture, {one.name: one for one in photos}, variants, setup, seeds, parsed.output)
    write_atomic(parsed.output / "report.csv", to_csv(rows))
    write_atomic(parsed.output / "report.json", summary.as_json(rows, told))
    page = html_report.page(rows, told, picture, variants[0].name)
    write_atomic(parsed.output / "report.html", page)
    statistics = summary.summarise(rows)
    print(align_columns(summary.table(statistics), left=2))
    for name in ("LPIPS", "warnings", "failed"):
        if name in told:
            print(f"{name}: {told[name]}")
    print(f"report: {parsed.output / 'report.html'}")
    low = list(_too_low(statistics, floors))
    for line in low:
        print(f"evaluate: {line}", file=sys.stderr)
    return 1 if failed or low else 0


def _all_compared(
    photos: list[parser.NamedPhoto], variants: list[Variant], setup: Setup, seeds: list[int], output: Path
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
                    one = cases.case(one_of.source, one_of.original, setup, seed=seed)
                    place = _seeded(one_of.name, seed, seeds)
                    for row in cases.compare(one, variants, setup, output, place):
                        found.append({"photo": one_of.name, "seed": seed, **row})
                        bar.update(row["variant"] != summary.BICUBIC)
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
    photos: Mapping[str, parser.NamedPhoto],
    variants: list[Variant],
    setup: Setup,
    seeds: list[int],
    output: Path,
    name: str,
) -> html_report.Picture:
    """What is to be seen of a photo, with the first seed."""
    place = _seeded(name, seeds[0], seeds)
    versions = {}
    for folder, called in [(summary.BICUBIC, summary.BICUBIC), *((v.folder, v.name) for v in variants)]:
        versions[called] = photo.decode(cases.picture_path(output, folder, place).read_bytes()).pixels
    truth = cases.case(photos[name].source, photos[name].original, setup, seed=seeds[0]).truth
    if truth is not None:
        height, width = versions[summary.BICUBIC].shape[:2]
        versions[cases.ORIGINAL] = truth[:height, :width]
    return html_report.Picture(name, versions)


def _too_low(
    statistics: Mapping[str, Mapping[str, Mapping[str, float]]], floors: Mapping[str, float]
) -> Iterator[str]:
    """What is worse than asked for; of metrics that are better when they are lower, what is higher."""
    for variant in [name for name in statistics if name != summary.BICUBIC]:
        for name, floor in floors.items():
            found = statistics[variant].get(name)
            if found is None:
                yield f"{variant} has no {name}, of which {floor:g} was asked for"
            elif summary.METRICS[name].better * (found["mean"] - floor) < 0:
                yield f"{variant} has a mean {name} of {found['mean']:.4g}, worse than {floor:g}"
