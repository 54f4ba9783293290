"""Run the jobs of the page and the REST API: each is an event of the queue, its state is in its record."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import Cancelled, TimedOut, UnsupportedImage
from ..progress import Progress
from . import previews
from .jobs import STATES, Job, Jobs
from .service import Service, receipt

_RETRY_SECONDS = 1.0  # until a record that could not be written is tried again


@dataclass
class QueuedJob:
    """The state of a job in the queue that is not part of its record.

    event_id  of the event that runs it
    progress  index of the current file, its steps done and in total
    """

    event_id: str = ""
    progress: tuple[int, int, int] = (0, 0, 0)


class JobRunner:
    """Queues jobs, runs them and cancels them."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service, self.jobs = service, jobs
        self.queued: dict[str, QueuedJob] = {}  # by the id of the job
        for state in STATES:
            service.metrics.count_jobs(state, partial(jobs.count, state))

    async def start(
        self, uploads: Sequence[str], options: dict[str, object], mask: Path | None = None
    ) -> Job:
        """Accept a job of the page, with previews.

        mask  file of the mask of the only upload

        Raises InvalidOption, QueueFull, DiskFull and UnsupportedImage.
        """
        self.service.options(options)
        with self.service.queue.reservation():
            self.service.check_disk_space()
            files = [(Path(upload).name, self.service.upload_path(upload)) for upload in uploads]
            if not files:
                raise UnsupportedImage("no photos chosen; choose at least one")
            add = partial(self.jobs.add, files, options, mask=mask, previews=True, transfer=_copy)
            return await self.accept(add)

    async def resume_cancelled(self, job: Job) -> None:
        """Restore the pending files of a cancelled job. Raises QueueFull, DiskFull and RestoreError."""
        with self.service.queue.reservation():
            self.service.check_disk_space()
            await self.accept(partial(self.jobs.reopen, job))

    async def accept(self, add: Callable[[], Job]) -> Job:
        """Queue the job that `add` returns, even if the caller is cancelled meanwhile; see Jobs.add()."""

        async def add_and_submit() -> Job:
            job = await asyncio.to_thread(add)
            await self.submit(job)
            return job

        return await asyncio.shield(add_and_submit())

    async def cancel(self, job: Job) -> bool:
        """Cancel a job; return False if it has ended already."""
        queued = self.queued.get(job.id)
        if not await asyncio.to_thread(self.jobs.end, job, "cancelled"):
            return False
        if queued:
            self._remove(job, queued)
            await self.service.queue.remove(queued.event_id)  # a running job stops at its next step
        return True

    async def resume(self) -> None:
        """Queue the jobs of earlier processes in their order."""
        for job in self.jobs.unfinished():
            await self.submit(job)

    async def submit(self, job: Job) -> None:
        """Queue a job."""
        queued = self.queued[job.id] = QueuedJob()
        queued.event_id = await self.service.queue.submit(job.id)

    async def run(self, job_id: str) -> None:
        """Run a job; its event in the queue calls this."""
        job, queued = self.jobs.get(job_id), self.queued.get(job_id)
        if not job or not queued:
            return
        try:
            await self.service.run(partial(self._work, job, queued))
        except Cancelled:  # by the client, who was answered, or by a shutdown: the next process resumes it
            pass
        except TimedOut as error:
            await asyncio.to_thread(self._abort, job, str(error))
        except Exception:  # noqa: BLE001  one job of the queue
            logging.getLogger(__name__).exception("job failed")
            await asyncio.to_thread(self.jobs.end, job, "failed")
        finally:
            self._remove(job, queued)

    def _remove(self, job: Job, queued: QueuedJob) -> None:
        """Forget that a job is in the queue, unless it was cancelled and queued again meanwhile."""
        if self.queued.get(job.id) is queued:
            del self.queued[job.id]

    def _abort(self, job: Job, error: str) -> None:
        """Fail the current file; the next process continues with those after it."""
        if job.next:
            self.jobs.finish_file(job, job.next, error=error)
        if not job.next:
            self.jobs.end(job, job.final_state)

    def _work(self, job: Job, queued: QueuedJob, progress: Progress) -> None:
        """Restore all pending files of a job; runs in the worker's thread."""
        if not _retry_until_written(partial(self.jobs.begin, job), progress):
            return
        for index, item in enumerate(job.items):
            if item.pending:
                self._restore_file(job, index, queued, progress)
        _retry_until_written(partial(self.jobs.end, job, job.final_state), progress)

    def _restore_file(self, job: Job, index: int, queued: QueuedJob, progress: Progress) -> None:
        item, folder = job.items[index], self.jobs.result_folder(job, index)

        def report(done: int, total: int) -> None:
            queued.progress = index, done, total
            progress(done, total)
            if job.ended or self.queued.get(job.id) is not queued:
                raise Cancelled("the job has ended")

        try:
            result, file = self.service.restore_to_file(
                self.jobs.input_path(job, index).read_bytes(),
                job.options,
                report,
                name=item.name,
                folder=folder,
                mask=self.jobs.mask(job),
            )
            if job.previews:
                previews.write_previews(result, files := self.service.result_files(file))
                if len(job.items) == 1:  # only then can the page change it; a cache holds all samples
                    previews.cache_result(result, files)
            names = {"file": file.name, "mask_file": previews.mask_name(result)}
            outcome = {"result": {**names, **receipt(result)}}
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  one file of a batch
            outcome = {"error": self.service.user_message(error)}
        if not _retry_until_written(partial(self.jobs.finish_file, job, item, **outcome), progress):
            shutil.rmtree(folder, ignore_errors=True)
            raise Cancelled("the job has ended")


def _copy(source: Path, target: Path) -> None:
    """Copy a file, by a link where the disk allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _retry_until_written(change: Callable[[], bool], progress: Progress) -> bool:
    """Return what a change of a job's record returns, retrying until it can be written to disk.

    There is no limit, as a state that is not on disk must not be reported; a cancelled job ends it.
    """
    while True:
        try:
            return change()
        except OSError:
            logging.getLogger(__name__).exception("cannot write a job record; retrying")
            time.sleep(_RETRY_SECONDS)
            progress(0, 0)  # raises if the job was cancelled
