"""Restore a folder of photos to a folder of results, each photo exactly once, through crashes and restarts.

The state of a photo is written beside the results before the next one starts: during a run as a small file
in .records/, and after every 1,000 photos and at its end as a line of .manifest/*.jsonl. A photo that brings
its process down is tried _ATTEMPTS times, then recorded as failed.
"""

import errno
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from .. import output_paths
from ..atomic import copy_times
from ..errors import (
    BadWeights,
    Cancelled,
    DeviceLost,
    InvalidOption,
    RestoreError,
    UnsuitableOption,
    WeightsUnavailable,
)
from ..images import file_types, sandbox
from ..pipeline import Restorer
from ..result import Result
from ..sequences import restore
from .manifest import FAILED, RESTORED, STARTED, Record, read_record, record_path, write_record
from .plan import Batch, Entry, present_networks
from .storage import Storage

_ATTEMPTS = 3
_MAX_CONCURRENT = 4
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR)  # these concern one result only


class _PhotoFailed(Exception):
    """A photo cannot be restored, for a reason that does not concern the others."""


class Worker:
    """Restore one photo at a time. May run in any process, on any machine."""

    def __init__(self, job: Batch) -> None:
        self.job = job
        self._inputs, self._outputs = Storage(job.source), Storage(job.output)
        if job.threads:
            import torch

            torch.set_num_threads(job.threads)
        self._restorer = Restorer(
            weights=job.weights,
            device=job.device,
            half=job.half,
            auto_cpu_megapixels=job.auto_cpu_megapixels,
            decoder=sandbox.decode,
            limits=job.limits,
        )
        if (networks := present_networks(job.options, self._restorer.weights)) != job.networks:
            expected, present = (", ".join(names) or "none" for names in (job.networks, networks))
            raise WeightsUnavailable(
                f"networks of faces, repair and colours here: {present}; the batch began with {expected}"
            )
        self._stopped = False

    def stop(self) -> None:
        """Cancel the current photos within one tile, as if they had not been started."""
        self._stopped = True

    def _check_stopped(self, *_: int) -> None:
        if self._stopped:
            raise Cancelled("the batch was stopped")

    def __call__(self, entry: Entry) -> Record:
        """Restore a photo, or return the record of a worker that did.

        Raises the errors that are not the photo's fault: WeightsUnavailable (also for weights other than
        the batch's), BadWeights, InvalidOption (an absent device), OSError of the output, and DeviceLost,
        after which this process cannot restore anything.
        """
        path, digest = record_path(entry.path), self.job.digest
        record = Record(entry.path, entry.stamp, digest, STARTED)
        if earlier := self._existing_record(entry):
            if earlier.finished:
                return earlier
            record = replace(record, tries=earlier.tries + 1)
        if record.tries > _ATTEMPTS:
            error = f"the process died {_ATTEMPTS} times while restoring this photo"
            record = replace(record, state=FAILED, error=error, tries=_ATTEMPTS)
        else:
            write_record(self._outputs, path, record)
            try:
                record = self._restore(entry, record)
            except DeviceLost:
                raise  # the photo may be the cause: the attempt counts
            except BaseException:
                with suppress(OSError):
                    self._outputs.remove_all([path])
                raise
        write_record(self._outputs, path, record)
        return record

    def was_interrupted(self, entry: Entry) -> bool:
        """Return whether the photo was started and not finished."""
        earlier = self._existing_record(entry)
        return earlier is not None and not earlier.finished

    def _existing_record(self, entry: Entry) -> Record | None:
        """Return the record of this version of the photo with this job's options."""
        record = read_record(self._outputs, record_path(entry.path))
        same = record and (record.stamp, record.digest) == (entry.stamp, self.job.digest)
        return record if same else None

    def _check_model(self, result: Result) -> None:
        """Raise WeightsUnavailable if the result's model is not the batch's: a fallback, or another file."""
        models = dict(self.job.models)
        if result.model not in models:
            raise WeightsUnavailable(f"{' or '.join(models)} cannot be loaded here, only {result.model}")
        if result.sha256 != models[result.model]:
            raise WeightsUnavailable(
                f"{result.model} is another file here: SHA-256 {result.sha256}, not {models[result.model]}; "
                "copy the file of the machine that started the batch"
            )

    def _results(self, entry: Entry, data: bytes) -> Iterator[tuple[int, Result]]:
        """Yield the results of a photo, see sequences.restore(). Raises _PhotoFailed if it is the cause."""
        options = asdict(self.job.options)
        try:
            for number, result in restore(
                self._restorer, data, self.job.sequences, progress=self._check_stopped, **options
            ):
                self._check_model(result)
                yield number, result
        except UnsuitableOption as error:
            raise _PhotoFailed(str(error)) from error
        except (WeightsUnavailable, BadWeights, Cancelled, InvalidOption):
            raise
        except RestoreError as error:
            raise _PhotoFailed(str(error)) from error
        except OSError as error:
            raise _PhotoFailed(error.strerror or str(error)) from error
        except Exception as error:  # noqa: BLE001  one photo must not stop the others
            if "CUDA error" in str(error):
                raise DeviceLost(f"the GPU failed: {error}") from error
            logging.getLogger(__name__).exception("%s failed", entry.path)
            raise _PhotoFailed(f"{type(error).__name__}: {error}") from error

    def _restore(self, entry: Entry, record: Record) -> Record:
        output, seconds, warnings = "", 0.0, dict[str, None]()
        try:
            data = self._inputs.read(entry.path)
        except OSError as error:
            return replace(record, state=FAILED, error=error.strerror or str(error))
        try:
            for number, result in self._results(entry, data):
                path = output_paths.numbered(PurePosixPath(entry.target), number)
                output = str(file_types.suffixed(path, result.format))
                self._outputs.write(output, result.data)
                if self.job.keep_times:
                    copy_times(Path(self._inputs.root, entry.path), Path(self._outputs.root, output))
                seconds += result.seconds
                warnings |= dict.fromkeys(result.warnings)
        except _PhotoFailed as error:
            return replace(record, state=FAILED, error=str(error))
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            return replace(record, state=FAILED, error=f"{output}: {error.strerror}")
        return replace(
            record,
            state=RESTORED,
            key=hashlib.sha256(data + record.digest.encode()).hexdigest(),
            output=output,
            seconds=round(seconds, 3),
            warnings="; ".join(warnings),
        )


def run(job: Batch, todo: Iterable[Entry], on_record: Callable[[Record], object]) -> None:
    """Restore photos in this process; with a GPU several at a time, of which it computes one tile at a time.

    on_record  called with the record of each finished photo, in order
    """
    worker = Worker(job)
    running: deque[Future[Record]] = deque()
    limit = _concurrency(job)
    with ThreadPoolExecutor(limit) as pool:

        def drain_to(count: int) -> None:
            while len(running) > count:
                on_record(running.popleft().result())

        try:
            for entry in todo:
                alone = worker.was_interrupted(entry)  # it may have brought the process down
                drain_to(0 if alone else limit - 1)
                running.append(pool.submit(worker, entry))
                if alone:
                    drain_to(0)
            drain_to(0)
        except BaseException:
            worker.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _concurrency(job: Batch) -> int:
    """Return how many photos to process at a time: while a GPU computes one, CPU cores decode and encode."""
    from ..inference import backends

    device = backends.pick_device(job.device)
    return min(_MAX_CONCURRENT, os.cpu_count() or 1) if device.type == "cuda" else 1
