"""The command line of evaluate.py: restore, compare and report."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..atomic import write_atomic
from ..errors import BadWeights, InvalidOption, RestoreError, WeightsUnavailable
from ..exit_status import exit_status
from ..folders import LeftOut
from ..images import photo
from ..options import Options
from ..tables import align_columns, to_csv
from . import cases, html_report, metrics, parser, summary
from .cases import Setup, Variant

_MAX_WARNINGS = 9  # in the report's head; the rows have all of them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run evaluate.py; return 0, 1 if a photo failed or a mean is below its threshold, 2 for wrong usage."""
    parsed = parser.build_parser().parse_args(arguments)
    return exit_status("evaluate", lambda: evaluate(parsed), interrupted="stopped; no report was written")


def evaluate(parsed: argparse.Namespace) -> int:
    """Restore and compare every photo, write the report, print the summary and return the exit status."""
    parser.check_conflicts(parsed)
    thresholds = parser.thresholds(parsed.fail_under)
    lpips_missing = "" if parsed.no_reference else metrics.lpips_missing()
    setup = Setup(
        scale=Options.outscale if parsed.scale is None else parsed.scale,
        recipe=parsed.recipe or Setup.recipe,
        published=parsed.published,
        degrades=not parsed.no_reference and parsed.gt is None,
        reference=not parsed.no_reference,
        lpips=not parsed.no_reference and not lpips_missing,
    )
    seeds = parser.seeds(parsed.seeds or "0")
    variants = parser.variants(parsed)
    left_out: list[LeftOut] = []
    photos = parser.photos(parsed.photos, parsed.output, parsed.gt, left_out)
    for one in left_out:
        print(one, file=sys.stderr)
    for name in ("report.csv", "report.json", "report.html"):  # a stale report would pass for this run's
        (parsed.output / name).unlink(missing_ok=True)
    rows, failed = _compare_all(photos, variants, setup, seeds, parsed.output)
    if not rows:
        return 1
    provenance = parser.provenance(parsed, setup, seeds, len(photos))
    if lpips_missing:
        provenance["LPIPS"] = f"skipped, {lpips_missing}"
    if failed:
        provenance["failed"] = [f"{name}: {reason}" for name, reason in failed.items()]
    if warnings := dict.fromkeys(str(row["warnings"]) for row in rows if row.get("warnings")):
        provenance["warnings"] = list(warnings)[:_MAX_WARNINGS]
    read_images = partial(
        _read_images, {one.name: one for one in photos}, variants, setup, seeds, parsed.output
    )
    write_atomic(parsed.output / "report.csv", to_csv(rows))
    write_atomic(parsed.output / "report.json", summary.to_json(rows, provenance))
    page = html_report.page(rows, provenance, read_images, variants[0].name)
    write_atomic(parsed.output / "report.html", page)
    statistics = summary.summarise(rows)
    print(align_columns(summary.table(statistics), left=2))
    for name in ("LPIPS", "warnings", "failed"):
        if name in provenance:
            print(f"{name}: {html_report.join(provenance[name])}")
    print(f"report: {parsed.output / 'report.html'}")
    failures = list(_below_thresholds(statistics, thresholds))
    for line in failures:
        print(f"evaluate: {line}", file=sys.stderr)
    return 1 if failed or failures or any(one.failed for one in left_out) else 0


def _compare_all(
    photos: list[parser.NamedPhoto], variants: list[Variant], setup: Setup, seeds: list[int], output: Path
) -> tuple[list[dict[str, object]], dict[str, str]]:
    """Return a row for each photo, seed and variant, and the reasons of failed photos by name."""
    rows: list[dict[str, object]] = []
    failed: dict[str, str] = {}
    with tqdm(total=len(photos) * len(seeds) * len(variants), disable=None, leave=False) as bar:
        for named in photos:
            bar.set_description_str(named.name)
            own = []
            try:
                if named.problem:
                    raise InvalidOption(named.problem)
                for seed in seeds:
                    case = cases.load_case(named.source, named.original, setup, seed=seed)
                    file_name = _with_seed(named.name, seed, seeds)
                    for row in cases.compare(case, variants, setup, output, file_name):
                        own.append({"photo": named.name, "seed": seed, **row})
                        bar.update(row["variant"] != summary.BICUBIC)
            except (WeightsUnavailable, BadWeights):
                raise  # every photo would fail
            except (RestoreError, OSError) as error:
                failed[named.name] = str(error)
                bar.write(f"{named.source}: failed, {error}", file=sys.stderr)
            else:
                rows += own
    return rows, failed


def _with_seed(name: str, seed: int, seeds: list[int]) -> str:
    return f"{name}_seed{seed}" if len(seeds) > 1 else name


def _read_images(
    photos: Mapping[str, parser.NamedPhoto],
    variants: list[Variant],
    setup: Setup,
    seeds: list[int],
    output: Path,
    name: str,
) -> html_report.PhotoImages:
    """Read back the images of a photo, those of the first seed."""
    file_name = _with_seed(name, seeds[0], seeds)
    versions = {}
    for folder, label in [(summary.BICUBIC, summary.BICUBIC), *((v.folder, v.name) for v in variants)]:
        versions[label] = photo.decode(cases.image_path(output, folder, file_name).read_bytes()).pixels
    truth = cases.load_case(photos[name].source, photos[name].original, setup, seed=seeds[0]).truth
    if truth is not None:
        height, width = versions[summary.BICUBIC].shape[:2]
        versions[cases.ORIGINAL] = truth[:height, :width]
    return html_report.PhotoImages(name, versions)


def _below_thresholds(statistics: summary.Summary, thresholds: Mapping[str, float]) -> Iterator[str]:
    """Yield a message for each mean that is worse than its threshold, or absent."""
    for variant in [name for name in statistics if name != summary.BICUBIC]:
        for name, threshold in thresholds.items():
            values = statistics[variant].get(name)
            if values is None:
                yield f"{variant} has no {name}; the threshold is {threshold:g}"
            elif summary.METRICS[name].better * (values["mean"] - threshold) < 0:
                yield f"{variant} has a mean {name} of {values['mean']:.4g}, worse than {threshold:g}"
