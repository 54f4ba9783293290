"""`restorer batch`: a folder of any size, on one machine or a Ray cluster."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..errors import InvalidOption
from ..folders import LeftOut
from .parser import limits, options_of, sequences
from .summary import print_left_out, summarize

if TYPE_CHECKING:
    from ..batch.manifest import Record
    from ..batch.plan import Batch
    from ..batch.storage import Storage


def run(parsed: argparse.Namespace) -> int:
    """Restore a folder; photos that earlier runs finished are not restored again."""
    for name in ("workers", "gpus_per_worker"):
        if (getattr(parsed, name) or 0) < 0:
            raise InvalidOption(f"{name} is {getattr(parsed, name)}; it must be 0 or more")
    if parsed.cpus_per_worker < 1:
        raise InvalidOption(f"cpus_per_worker is {parsed.cpus_per_worker}; it must be 1 or more")
    if not parsed.ray and (parsed.workers or parsed.gpus_per_worker or parsed.cpus_per_worker > 1):
        raise InvalidOption("workers are started by Ray; add --ray or leave out the options of workers")
    options = options_of(parsed)
    from ..batch import plan, ray, runner

    job = plan.prepare(
        plan.Batch(
            parsed.source,
            parsed.output,
            options,
            weights=parsed.weights_dir,
            device=parsed.device,
            half=False if parsed.fp32 else None,
            threads=parsed.cpus_per_worker if parsed.ray else 0,
            limits=limits(parsed.max_megapixels),
            keep_times=parsed.keep_times,
            sequences=sequences(parsed),
        )
    )
    place = {"address": parsed.ray, "workers": parsed.workers, "cpus": parsed.cpus_per_worker}
    restore = partial(ray.run, **place, gpus=parsed.gpus_per_worker) if parsed.ray else runner.run
    start = time.perf_counter()
    counts = _run(job, restore, retry_failed=parsed.retry_failed)
    summary = summarize(counts, "restored", "done before")
    print(f"{summary} in {time.perf_counter() - start:.1f} s; see {parsed.output}/.manifest for each photo")
    return 1 if counts["failed"] else 0


def _existing(outputs: "Storage", results: Iterable[str]) -> set[str]:
    """Return the files that exist, at least of `results`. Raises OSError if a folder cannot be listed."""
    if outputs.local:  # also in a folder that is a link
        return set(filter(outputs.exists, results))
    unlisted: list[LeftOut] = []
    paths = {file.path for file in outputs.files(unlisted)} if outputs.exists() else set()
    if problem := next((str(one) for one in unlisted if one.failed), ""):
        raise OSError(problem)
    return paths


def _run(job: "Batch", restore: Callable, *, retry_failed: bool) -> Counter[str]:
    """Restore what remains; count the photos restored now, done before, and failed now or before."""
    from tqdm import tqdm

    from ..batch import manifest, plan, storage

    left_out: list[LeftOut] = []
    photos = plan.photos(job, left_out)
    counts = print_left_out(left_out)
    if not photos and not counts["failed"]:
        raise InvalidOption(f"no photos found in {job.source}")
    outputs = storage.Storage(job.output)
    with manifest.open_manifest(outputs) as records:
        existing = _existing(outputs, records.results())
        remaining, finished, unreadable = [], [], counts[manifest.FAILED]
        for photo in photos:
            state, output = records.done(photo, job.digest)
            done = (
                output in existing
                if state == manifest.RESTORED
                else state == manifest.FAILED and not retry_failed
            )
            if not done:
                remaining.append(photo)
            else:
                counts["done before" if state == manifest.RESTORED else manifest.FAILED] += 1
                finished += [output] if output else []
        if earlier := counts[manifest.FAILED] - unreadable:
            print(f"failed in earlier runs: {earlier}; --retry-failed restores these too", file=sys.stderr)
        plan.check_room(job, remaining)
        with tqdm(total=len(photos), initial=len(photos) - len(remaining), unit="photo", disable=None) as bar:

            def add(record: "Record") -> None:
                records.note(record)
                counts[record.state] += 1
                if record.warnings:
                    counts["with warnings"] += 1
                    if counts["with warnings"] == 1:
                        bar.write(f"{record.path}: {record.warnings}", file=sys.stderr)
                bar.set_postfix(failed=counts["failed"], refresh=False)
                bar.update()
                if record.state == manifest.FAILED:
                    bar.write(f"{record.path}: failed, {record.error}", file=sys.stderr)

            if remaining:
                restore(job, plan.entries(job, remaining, finished), add)
    return counts
