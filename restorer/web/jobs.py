"""Jobs of page and REST API as records on disk: they survive the process, and end once unless reopened."""

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from ..atomic import write_atomic
from ..errors import RestoreError
from .previews import CACHED

UNFINISHED = ("queued", "processing")
State = Literal["queued", "processing", "completed", "failed", "cancelled"]
STATES = get_args(State)
_MAX_STARTS = 3  # crashes of the process during one file until that file is taken for the cause
_RECORD, _MASK = "job.json", "mask"


@dataclass
class JobFile:
    """One file of a job.

    name    as uploaded; results are named after it
    result  what answers report once it is restored
    error   why it could not be restored, as a message for the user
    """

    name: str
    result: dict[str, object] | None = None
    error: str = ""

    @property
    def pending(self) -> bool:
        return not self.result and not self.error


@dataclass
class Job:
    """A job and its state.

    state    "queued", "processing", "completed", "failed" or "cancelled"
    created  seconds since 1970; jobs run in this order
    starts   how often it was started since a file was last finished
    previews  whether the page shows its results
    key      the Idempotency-Key of its request, "" without one
    digest   of the files and options of that request
    """

    id: str
    options: dict[str, object]
    items: list[JobFile]
    state: State = "queued"
    created: float = field(default_factory=time.time)
    starts: int = 0
    previews: bool = False
    key: str = ""
    digest: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def next(self) -> JobFile | None:
        """The first pending file."""
        return next((item for item in self.items if item.pending), None)

    @property
    def final_state(self) -> str:
        """The state once no file is pending."""
        return "completed" if any(item.result for item in self.items) else "failed"


_PARSER = TypeAdapter(Job)


class Jobs:
    """All jobs of a server. A job's record and inputs are in uploads/<id>, its results in results/<id>.

    Every change is written to disk before it becomes visible; if that fails, OSError is raised and nothing
    has changed. Thread-safe.
    """

    def __init__(self, uploads: Path, results: Path) -> None:
        self.uploads, self.results = uploads, results
        self._lock = threading.Lock()
        uploads.mkdir(parents=True, exist_ok=True)
        self._jobs = {job.id: job for job in _read_records(uploads)}
        for job in self.unfinished():
            job.state = "queued"

    def add(
        self,
        files: Iterable[tuple[str, Path]],
        options: dict[str, object],
        *,
        mask: Path | None = None,
        key: str = "",
        digest: str = "",
        previews: bool = False,
        transfer: Callable[[Path, Path], object] = os.replace,
    ) -> Job:
        """Accept a job and move its `files` (name and current path) into its folder, or `transfer` them.

        mask  of the only photo
        """
        job = Job(uuid.uuid4().hex, options, [], previews=previews, key=key, digest=digest)
        part = self.uploads / f"{job.id}.part"
        part.mkdir()
        try:
            for index, (name, path) in enumerate(files):
                transfer(path, part / str(index))
                job.items.append(JobFile(name))
            if mask:
                transfer(mask, part / _MASK)
            self._save(job, part)
            part.rename(self.uploads / job.id)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._jobs[job.id] = job
        return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def find(self, key: str) -> Job | None:
        """Return the job that was accepted with this Idempotency-Key."""
        return next((job for job in list(self._jobs.values()) if key and job.key == key), None)

    def unfinished(self) -> list[Job]:
        """Return the queued and running jobs, oldest first."""
        jobs = [job for job in list(self._jobs.values()) if not job.ended]
        return sorted(jobs, key=lambda job: job.created)

    def count(self, state: str) -> int:
        return sum(job.state == state for job in list(self._jobs.values()))

    def input_path(self, job: Job, index: int) -> Path:
        return self.uploads / job.id / str(index)

    def mask(self, job: Job) -> bytes | None:
        """Read the mask that was sent with a job's only photo."""
        path = self.uploads / job.id / _MASK
        return path.read_bytes() if path.is_file() else None

    def result_folder(self, job: Job, index: int) -> Path:
        """Return the folder for one file's results; one per file, as two files may have the same name."""
        return self.results / job.id / str(index)

    def begin(self, job: Job) -> bool:
        """Start a queued job; return False if it has ended.

        A file during which the process crashed _MAX_STARTS times fails, and the job continues with the next.
        """
        with self._lock:
            if job.ended:
                return False
            starts, items = job.starts, job.items
            if starts >= _MAX_STARTS and (suspect := job.next):
                error = f"the server crashed {_MAX_STARTS} times while restoring this photo"
                starts, items = 0, _with(items, suspect, error=error)
            self._change(job, state="processing", starts=starts + 1, items=items)
            return True

    def finish_file(
        self, job: Job, item: JobFile, *, result: dict[str, object] | None = None, error: str = ""
    ) -> bool:
        """Record a file's result or error; return False if it has one, or the job has ended."""
        with self._lock:
            if job.ended or not any(one is item and one.pending for one in job.items):
                return False
            items = _with(job.items, item, result=result, error=error)
            self._change(job, items=items, starts=1)  # later crashes are not this file's fault
            return True

    def end(self, job: Job, state: str) -> bool:
        """End a job; return False, and change nothing, if it has ended already."""
        with self._lock:
            if job.ended:
                return False
            self._change(job, state=state)
            with suppress(OSError):  # restart the retention time of its results
                os.utime(self.results / job.id)
            return True

    def reopen(self, job: Job) -> Job:
        """Queue a cancelled job again for its pending files. Raises RestoreError if there are none."""
        with self._lock:
            if job.state != "cancelled" or not job.next:
                raise RestoreError("no photo of this batch is left to restore")
            if self.get(job.id) is not job or not self.input_path(job, job.items.index(job.next)).is_file():
                raise RestoreError("the photos of this batch have expired; choose them again")
            self._change(job, state="queued", starts=0)
        return job

    def requeue(self) -> None:
        """Put running jobs back into the queue for the next process; a clean shutdown is not a crash."""
        with self._lock:
            for job in list(self._jobs.values()):
                if job.state == "processing":
                    with suppress(OSError):  # the old record is resumed too, but counts as a start
                        self._change(job, state="queued", starts=0)

    def delete(self, job: Job) -> None:
        """Delete a job with its inputs and results if it has ended."""
        with self._lock:
            if not job.ended:
                return
            self._jobs.pop(job.id, None)
        shutil.rmtree(self.results / job.id, ignore_errors=True)
        shutil.rmtree(self.results / CACHED / job.id, ignore_errors=True)
        shutil.rmtree(self.uploads / job.id, ignore_errors=True)

    def is_unfinished(self, job_id: str) -> bool:
        """Return whether there is a job of that id that has not ended."""
        job = self._jobs.get(job_id)
        return job is not None and not job.ended

    def forget_deleted(self) -> None:
        """Drop ended jobs whose folders were deleted."""
        for job in list(self._jobs.values()):
            if job.ended and not (self.uploads / job.id).is_dir():
                self._jobs.pop(job.id, None)

    def _change(self, job: Job, **fields: object) -> None:
        self._save(replace(job, **fields))
        vars(job).update(fields)

    def _save(self, job: Job, folder: Path | None = None) -> None:
        folder = folder or self.uploads / job.id
        write_atomic(folder / _RECORD, json.dumps(asdict(job)).encode())


def _with(items: list[JobFile], changed: JobFile, **fields: object) -> list[JobFile]:
    return [replace(item, **fields) if item is changed else item for item in items]


def _read_records(uploads: Path) -> list[Job]:
    """Return the jobs of earlier processes; invalid records are logged and skipped."""
    jobs = []
    for record in uploads.glob(f"*/{_RECORD}"):
        try:
            job = _PARSER.validate_json(record.read_bytes(), strict=True)
            if job.id == record.parent.name:
                jobs.append(job)
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(map(str, one["loc"])) or "JSON" for one in error.errors()}))
            logging.getLogger(__name__).warning("skipping an invalid job record: wrong %s", fields)
        except OSError as error:
            logging.getLogger(__name__).warning("skipping a job record: %s", error)
    return jobs
