"""The queue in front of the device: Gradio's own, which the page, gradio_client and the REST API share.

Jobs need a position, must be removable, and are queued again at start; and the limit must not apply to
events that do not compute. Gradio has no public interface for that: its /call routes report no position, and
the stream of /queue/data, which does, cannot be read in this process, as httpx.ASGITransport returns complete
responses only. So this file, and no other, uses Blocks._queue, which requirements.txt pins to Gradio 6.
"""

import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from gradio import events
from gradio.context import LocalContext
from gradio.data_classes import PredictBodyInternal

from ..errors import QueueFull
from .worker import Worker

# Of every event that restores, previews or maps damage
GPU: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1}


class GpuQueue:
    """Events with the options GPU: waiting, first in, first out, and at most one running.

    max_waiting  how many events may wait while one runs
    """

    def __init__(self, worker: Worker, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._worker, self._reserved = worker, 0
        self._session = secrets.token_hex(16)  # of all jobs; clients do not know it

    def attach(self, blocks: gr.Blocks, run_job: Callable[[str], Awaitable[None]]) -> gr.Blocks:
        """Enable the queue of `blocks`, with an event that calls run_job(job_id); return `blocks`."""
        with blocks:
            events.api(run_job, api_name="run_job", api_visibility="private", **GPU)
        # Other events are not limited; without a max_size, Gradio allows one event on ZeroGPU.
        # api_open would let programs bypass the queue
        blocks.queue(max_size=sys.maxsize, default_concurrency_limit=8, api_open=False)
        job_event = next(event for event in blocks.fns.values() if event.api_name == "run_job")
        self._job_event = job_event._id
        self._blocks, self._queue, self._push = blocks, blocks._queue, blocks._queue.push
        self._queue.create_event_queue_for_fn(job_event)
        self._queue.push = self._push_unless_full
        self._events = self._queue.event_queue_per_concurrency_id[GPU["concurrency_id"]]
        return blocks

    def set_app(self, app: FastAPI) -> None:
        """Set the application that runs events; Gradio sets it at the first call of a client."""
        self._queue.set_server_app(app)  # type: ignore[arg-type]

    @property
    def length(self) -> int:
        """The number of events, the running one included."""
        return len(self._events.queue) + self._events.current_concurrency

    def check(self) -> None:
        """Raise QueueFull if no event can be added."""
        if self._worker.closed:
            raise QueueFull("the server is shutting down; try again in a minute")
        if self.length + self._reserved > self.max_waiting:
            raise QueueFull(f"the queue is full ({self.max_waiting} waiting); try again later")

    @contextmanager
    def reservation(self) -> Iterator[None]:
        """Reserve room for one event while a request is examined. Raises QueueFull as check() does."""
        self.check()
        self._reserved += 1
        try:
            yield
        finally:
            self._reserved -= 1

    async def submit(self, job_id: str) -> str:
        """Add an event that runs a job, even if the queue is full, and return the event's id."""
        request = Request(
            {
                "type": "http",
                "method": "POST",
                "scheme": "http",
                "server": ("localhost", 80),
                "path": "/gradio_api/queue/join",
                "query_string": b"",
                "headers": [],
            }
        )
        body = PredictBodyInternal(
            data=[job_id], fn_index=self._job_event, session_hash=self._session, request=request
        )
        self._keep_messages()
        _, event_id, _ = await self._push(body=body, request=request, username=None)
        self._queue.pending_event_ids_session[self._session].clear()  # filled for a stream that nobody reads
        return str(event_id)

    async def remove(self, event_id: str) -> None:
        """Remove an event if it is waiting."""
        await self._queue.remove_from_queue(event_id)

    def position(self, event_id: str) -> int:
        """Return how many events are ahead, the running one included; 0 for one that does not wait."""
        for rank, event in enumerate(self._events.queue):
            if event._id == event_id:
                return rank + self._events.current_concurrency
        return 0

    def client_left(self) -> bool:
        """Return whether the client of the event that calls this has closed its stream.

        Gradio closes generators then, but lets other functions run to their end.
        """
        event = self._queue.event_ids_to_events.get(LocalContext.event_id.get(None) or "")
        return event is not None and not event.alive

    def uploads(self) -> Iterator[str]:
        """Yield the paths of the uploads of all events, waiting or running."""
        running = [event for active in self._queue.active_jobs for event in active or ()]
        for event in (*self._events.queue, *running):
            for value in event.data.data if event.data else ():
                for file in value if isinstance(value, list) else [value]:
                    if isinstance(file, dict) and isinstance(file.get("path"), str):
                        yield file["path"]

    async def _push_unless_full(
        self, body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, Any, Any]:
        """Add an event of a client; replaces Queue.push()."""
        function = self._blocks.fns.get(body.fn_index)  # type: ignore[arg-type]
        if function and function.concurrency_id == GPU["concurrency_id"]:
            try:
                self.check()
            except QueueFull as error:
                return False, str(error), "queue_full"
        self._keep_messages()
        return await self._push(body=body, request=request, username=username)

    def _keep_messages(self) -> None:
        """Keep the messages to clients of unfinished events, and discard those to jobs.

        Gradio drops those of the oldest of 2,000 sessions at a push, and its queue stops if they are missing.
        """
        messages = self._queue.pending_messages_per_session
        messages[self._session] = _NoMessages()  # type: ignore[assignment]
        for event in self._queue.event_ids_to_events.values():
            if event.session_hash in messages:
                messages.move_to_end(event.session_hash)


class _NoMessages:
    def put_nowait(self, message: object) -> None:
        """Discard a message."""
