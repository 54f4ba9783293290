"""Run one photo at a time in a thread: progress out, cancellation in, a watchdog for hanging devices."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from ..errors import Cancelled, TimedOut
from ..progress import Progress

_POLL_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Progress of a task: steps (tiles and faces) done and in total; 0 while the total is unknown."""

    done: int = 0
    total: int = 0


class Worker:
    """Run tasks until closed, one at a time.

    Gradio starts the next task as soon as one is cancelled; a lock makes its thread wait until that of the
    cancelled one has reached its next step.

    timeout  seconds without progress after which the running task is aborted and the worker closed: a
             thread that hangs inside the device cannot be ended
    stuck    set once that happened; only a new process can use the device again
    """

    def __init__(self, timeout: float = math.inf) -> None:
        self.timeout = timeout
        self.closed, self.stuck = False, threading.Event()
        self._device = threading.Lock()
        self._last_progress: float | None = None  # of the running task

    @property
    def silent_seconds(self) -> float:
        """Seconds since the running task last made progress; 0 while none runs."""
        last_progress = self._last_progress
        return 0.0 if last_progress is None else time.monotonic() - last_progress

    def watch(self) -> None:
        """Close the worker if the running task has timed out. Call this periodically."""
        if self.silent_seconds > self.timeout:
            self.closed = True
            self.stuck.set()

    async def steps(self, run: Callable[[Progress], T]) -> AsyncGenerator[Step | T, None]:
        """Run `run(progress)` in a thread; yield a Step every half second and its result at the end.

        Closing or cancelling the generator stops the task at its next step. Raises what `run` raises,
        Cancelled if the worker is closed, and TimedOut if the task made no progress for `timeout` seconds:
        should its thread return later, it is stopped then.
        """
        latest, running, cancelled = Step(), False, False
        if self.closed:
            raise Cancelled("stopped")

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest, self._last_progress = Step(done, total), time.monotonic()
            if cancelled or self.closed:
                raise Cancelled("stopped")

        def work(future: Future[T]) -> None:
            nonlocal running
            result = None
            try:
                with self._device:
                    running = True
                    try:
                        progress(0, 0)
                        result = run(progress)
                    finally:
                        self._last_progress = None
                future.set_result(result)  # after releasing the device: whoever sees the result sees it free
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                if cancelled:
                    future.cancel()  # nobody waits for it
                else:
                    future.set_exception(error)
            finally:
                del future, result  # the traceback refers to this frame: the cycle would keep images alive

        future: Future[T] = Future()
        threading.Thread(target=work, args=(future,), daemon=True).start()
        completed = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait([completed], timeout=_POLL_SECONDS))[0]:
                self.watch()
                if self.stuck.is_set():
                    if running:
                        raise TimedOut(f"no progress for {self.timeout:g} s; job aborted")
                    raise Cancelled("stopped")
                yield latest
            yield completed.result()
        finally:
            cancelled = True
            del future, completed  # a reference cycle too

    def close(self, seconds: float) -> bool:
        """Stop the running task and refuse others; return whether it ended within `seconds`."""
        self.closed = True
        return self._device.acquire(timeout=seconds)
