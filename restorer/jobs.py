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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .files import write_atomic

WAITING = ("queued", "processing")
STATES = (*WAITING, "completed", "failed", "cancelled")
_STARTS = 3  # of a job whose process ended in the middle, before it is taken for the cause
_RECORD = "job.json"


@dataclass
class Item:
    """One file of a job.

    name    as it was uploaded, for the answer only
    result  what the answer says of it once it is restored
    error   why it could not be, in the user's words
    """

    name: str
    result: dict[str, object] | None = None
    error: str = ""


@dataclass
class Job:
    """What was asked for, and how far it is.

    state    "queued", "processing", "completed", "failed" or "cancelled"
    created  seconds since 1970; jobs run in this order
    starts   how often it was begun
    """

    id: str
    options: dict[str, object]
    items: list[Item]
    state: str = "queued"
    created: float = field(default_factory=time.time)
    starts: int = 0

    @property
    def ended(self) -> bool:
        return self.state not in WAITING


class Jobs:
    """All jobs of a server. A job's record and inputs lie in uploads/<id>, its results in results/<id>.

    Whatever is changed is on disk before anybody hears of it. Safe for threads.
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
                job.items.append(Item(name))
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
            if job.starts >= _STARTS:
                job.starts = 0
                for item in job.items:
                    if not item.result and not item.error:
                        item.error = f"the server ended {_STARTS} times while this was worked on"
                        break
            job.state, job.starts = "processing", job.starts + 1
            self._save(job)
            return True

    def note(self, job: Job, item: Item, *, result: dict[str, object] | None = None, error: str = "") -> bool:
        """Write down what became of one file; False when the job has ended meanwhile."""
        with self._lock:
            if job.ended:
                return False
            item.result, item.error = result, error
            job.starts = 1  # whatever comes down now, it was not this file
            self._save(job)
            return True

    def end(self, job: Job, state: str) -> bool:
        """End a job; False, and nothing changes, when it has ended already."""
        with self._lock:
            if job.ended:
                return False
            job.state = state
            self._save(job)
            with suppress(OSError):  # the hour of its results begins now
                os.utime(self.results / job.id)
            return True

    def put_back(self) -> None:
        """What is under way into the queue again, for the next process: this one ends in an orderly way."""
        with self._lock:
            for job in self._known.values():
                if job.state == "processing":
                    job.state, job.starts = "queued", 0
                    self._save(job)

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

    def _save(self, job: Job, folder: Path | None = None) -> None:
        folder = folder or self.uploads / job.id
        write_atomic(folder / _RECORD, json.dumps(asdict(job)).encode())


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
            job = Job(**{**read, "items": [Item(**item) for item in read["items"]]})
            if job.id == record.parent.name and _is_sound(job):
                found.append(job)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            logging.getLogger(__name__).warning("the record of a job cannot be read: %s", error)
    return found
