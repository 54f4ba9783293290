"""Jobs on disk: what was accepted survives the process, and each ends in exactly one way."""

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ...atomic import write_atomic

WAITING = ("queued", "processing")
STATES = (*WAITING, "completed", "failed", "cancelled")
_STARTS = 3  # of a job whose process ended in the middle, before it is taken for the cause
_RECORD = "job.json"


@dataclass
class JobFile:
    """One file of a job.

    name    as it was uploaded, for the answer only
    result  what the answer says of it once it is restored
    error   why it could not be, in the user's words
    """

    name: str
    result: dict[str, object] | None = None
    error: str = ""

    @property
    def waiting(self) -> bool:
        return not self.result and not self.error


@dataclass
class Job:
    """What was asked for, and how far it is.

    state    "queued", "processing", "completed", "failed" or "cancelled"
    created  seconds since 1970; jobs run in this order
    starts   how often it was begun
    """

    id: str
    options: dict[str, object]
    items: list[JobFile]
    state: str = "queued"
    created: float = field(default_factory=time.time)
    starts: int = 0

    @property
    def ended(self) -> bool:
        return self.state not in WAITING

    @property
    def next(self) -> JobFile | None:
        """The first file of which nothing is known yet."""
        return next((item for item in self.items if item.waiting), None)

    @property
    def final_state(self) -> str:
        """How it ends once all of its files have."""
        return "completed" if any(item.result for item in self.items) else "failed"


class Jobs:
    """All jobs of a server. A job's record and inputs lie in uploads/<id>, its results in results/<id>.

    Whatever is changed is on disk before anybody hears of it: where that fails nothing is, and OSError
    is raised. Safe for threads.
    """

    def __init__(self, uploads: Path, results: Path) -> None:
        self.uploads, self.results = uploads, results
        self._lock = threading.Lock()
        uploads.mkdir(parents=True, exist_ok=True)
        self._known = {job.id: job for job in _read(uploads)}
        for job in self.waiting():
            job.state = "queued"

    def add(self, files: Iterable[tuple[str, Path]], options: dict[str, object]) -> Job:
        """Accept a job: `files` (name and where it is now) are moved into its folder."""
        job = Job(uuid.uuid4().hex, options, [])
        part = self.uploads / f"{job.id}.part"
        part.mkdir()
        try:
            for index, (name, path) in enumerate(files):
                os.replace(path, part / str(index))
                job.items.append(JobFile(name))
            self._save(job, part)
            part.rename(self.uploads / job.id)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._known[job.id] = job
        return job

    def get(self, job_id: str) -> Job | None:
        return self._known.get(job_id)

    def waiting(self) -> list[Job]:
        """Those that have not ended, the oldest first."""
        return sorted((job for job in self._known.values() if not job.ended), key=lambda job: job.created)

    def count(self, state: str) -> int:
        return sum(job.state == state for job in list(self._known.values()))

    def input(self, job: Job, index: int) -> bytes:
        return (self.uploads / job.id / str(index)).read_bytes()

    def result_folder(self, job: Job, index: int) -> Path:
        """Where the results of one file go; of its own, for two files may have one name."""
        return self.results / job.id / str(index)

    def begin(self, job: Job) -> bool:
        """Take a queued job up; False for one that has ended.

        A file at which the process came down again and again is given up, and the job goes on with the next.
        """
        with self._lock:
            if job.ended:
                return False
            starts, items = job.starts, job.items
            if starts >= _STARTS and (stuck := job.next):
                why = f"the server ended {_STARTS} times while this was worked on"
                starts, items = 0, _with(items, stuck, error=why)
            self._change(job, state="processing", starts=starts + 1, items=items)
            return True

    def note(
        self, job: Job, item: JobFile, *, result: dict[str, object] | None = None, error: str = ""
    ) -> bool:
        """Write down what became of one file; False when that is known, or the job has ended meanwhile."""
        with self._lock:
            if job.ended or not any(one is item and one.waiting for one in job.items):
                return False
            items = _with(job.items, item, result=result, error=error)
            self._change(job, items=items, starts=1)  # whatever comes down now, it was not this file
            return True

    def end(self, job: Job, state: str) -> bool:
        """End a job; False, and nothing changes, when it has ended already."""
        with self._lock:
            if job.ended:
                return False
            self._change(job, state=state)
            with suppress(OSError):  # the hour of its results begins now
                os.utime(self.results / job.id)
            return True

    def put_back(self) -> None:
        """What is under way into the queue again, for the next process: this one ends in an orderly way."""
        with self._lock:
            for job in self._known.values():
                if job.state == "processing":
                    with suppress(OSError):  # as it is on disk it comes back too, counted as a start
                        self._change(job, state="queued", starts=0)

    def delete(self, job: Job) -> None:
        """Everything of a job that has ended."""
        self._known.pop(job.id, None)
        shutil.rmtree(self.results / job.id, ignore_errors=True)
        shutil.rmtree(self.uploads / job.id, ignore_errors=True)

    def needed(self, name: str) -> bool:
        """Whether a folder of that name belongs to a job that has not ended."""
        job = self._known.get(name)
        return job is not None and not job.ended

    def forget_deleted(self) -> None:
        """Know no more of the jobs whose folders are gone."""
        for job in list(self._known.values()):
            if job.ended and not (self.uploads / job.id).is_dir():
                self._known.pop(job.id, None)

    def _change(self, job: Job, **fields: object) -> None:
        self._save(replace(job, **fields))
        vars(job).update(fields)

    def _save(self, job: Job, folder: Path | None = None) -> None:
        folder = folder or self.uploads / job.id
        write_atomic(folder / _RECORD, json.dumps(asdict(job)).encode())


def _with(items: list[JobFile], changed: JobFile, **fields: object) -> list[JobFile]:
    return [replace(item, **fields) if item is changed else item for item in items]


def _is_sound(job: Job) -> bool:
    """Whether a record says what it should, whoever wrote it."""
    return (
        job.state in STATES
        and isinstance(job.created, int | float)
        and isinstance(job.starts, int)
        and isinstance(job.options, dict)
        and all(isinstance(item.name, str) and isinstance(item.result, dict | None) for item in job.items)
    )


def _read(uploads: Path) -> list[Job]:
    """The jobs of an earlier process."""
    found = []
    for record in uploads.glob(f"*/{_RECORD}"):
        try:
            read = json.loads(record.read_bytes())
            job = Job(**{**read, "items": [JobFile(**item) for item in read["items"]]})
            if job.id == record.parent.name and _is_sound(job):
                found.append(job)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            logging.getLogger(__name__).warning("the record of a job cannot be read: %s", error)
    return found
