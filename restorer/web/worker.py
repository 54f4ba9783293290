"""The queue in front of the device: one photo at a time, first in, first out, each in a thread."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ..errors import Cancelled, QueueFull, TimedOut
from ..progress import Progress

_POLL_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Progress of a task: steps (tiles and faces) done and in total, and its position, 0 while it runs."""

    done: int = 0
    total: int = 0
    position: int = 0


class QueueEntry:
    """A task's entry in the queue."""

    def __init__(self) -> None:
        self.cancelled = self.started = False


class Worker:
    """Run one task at a time, in the order of their queue entries, until closed.

    max_waiting  how many tasks may wait while one runs
    timeout      seconds without progress after which the running task is aborted and the worker closed: a
                 thread that hangs inside the device cannot be ended
    stuck        set once that happened; only a new process can use the device again
    """

    def __init__(self, max_waiting: int = 20, timeout: float = math.inf) -> None:
        self.max_waiting, self.timeout = max_waiting, timeout
        self.closed, self.stuck = False, threading.Event()
        self._queue: list[QueueEntry] = []
        self._changed = threading.Condition()
        self._last_progress = time.monotonic()

    def check(self, *, always: bool = False) -> None:
        """Raise QueueFull if the worker is closed or, unless `always`, the queue is full."""
        if self.closed:
            raise QueueFull("the server is shutting down; try again in a minute")
        if len(self._queue) > self.max_waiting and not always:
            raise QueueFull(f"the queue is full ({self.max_waiting} waiting); try again later")

    def join(self, *, always: bool = False) -> QueueEntry:
        """Append an entry to the queue. Raises QueueFull as check() does."""
        with self._changed:
            self.check(always=always)
            if not self._queue:
                self._last_progress = time.monotonic()
            self._queue.append(entry := QueueEntry())
        return entry

    def leave(self, entry: QueueEntry) -> None:
        """Remove a waiting entry; a running task stops at its next step."""
        with self._changed:
            entry.cancelled = True
            running = entry.started and self._queue[:1] == [entry]
            if entry in self._queue and not running:
                self._queue.remove(entry)
            self._changed.notify_all()

    def position(self, entry: QueueEntry) -> int:
        """Return how many tasks are ahead, the running one included; 0 for a running or finished task."""
        with self._changed:
            return self._queue.index(entry) if entry in self._queue else 0

    @property
    def queue_length(self) -> int:
        """The number of tasks, the running one included."""
        return len(self._queue)

    @property
    def silent_seconds(self) -> float:
        """Seconds since the running task last made progress; 0 while none runs."""
        return time.monotonic() - self._last_progress if self._queue else 0.0

    def watch(self) -> None:
        """Close the worker if the running task has timed out. Call this periodically."""
        if self.silent_seconds > self.timeout and not self.stuck.is_set():
            with self._changed:
                self.closed = True
                self.stuck.set()
                self._changed.notify_all()

    async def steps(
        self, run: Callable[[Progress], T], entry: QueueEntry | None = None
    ) -> AsyncIterator[Step | T]:
        """Run `run(progress)` in a thread; yield a Step every half second and its result at the end.

        Closing or cancelling the generator stops the task at its next step; the next task starts after that.
        Raises what `run` raises, QueueFull if no entry was passed and the queue is full, and TimedOut if the
        task made no progress for `timeout` seconds: should its thread return later, it is stopped then.
        """
        entry = entry or self.join()
        latest = Step()

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest, self._last_progress = Step(done, total), time.monotonic()
            if entry.cancelled or self.closed:
                raise Cancelled("stopped")

        def work(future: Future[T]) -> None:
            result = None
            try:
                with self._device(entry):
                    progress(0, 0)
                    result = run(progress)
                future.set_result(result)  # after leaving the queue: whoever sees the result sees it free
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                if entry.cancelled:
                    future.cancel()  # nobody waits for it
                else:
                    future.set_exception(error)
            finally:
                del future, result  # the traceback refers to this frame: the cycle would keep images alive

        future: Future[T] = Future()
        entry.started = True
        threading.Thread(target=work, args=(future,), daemon=True).start()
        completed = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait([completed], timeout=_POLL_SECONDS))[0]:
                self.watch()
                if self.stuck.is_set() and self._queue[:1] == [entry]:
                    raise TimedOut(f"no progress for {self.timeout:g} s; job aborted")
                position = self.position(entry)
                yield Step(position=position) if position else latest
            yield completed.result()
        finally:
            self.leave(entry)
            del future, completed  # a reference cycle too

    @contextmanager
    def _device(self, entry: QueueEntry) -> Iterator[None]:
        """Hold the device once all entries ahead have left. Raises Cancelled if the entry was cancelled."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: entry.cancelled or self.closed or self._queue[0] is entry)
            if entry.cancelled or self.closed:
                raise Cancelled("stopped")
            yield
        finally:
            with self._changed:
                if entry in self._queue:
                    self._queue.remove(entry)
                self._last_progress = time.monotonic()
                self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Stop the running task and refuse others; return whether all tasks ended within `seconds`."""
        with self._changed:
            self.closed = True
            self._queue = [entry for entry in self._queue if entry.started]
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue, timeout=seconds)
