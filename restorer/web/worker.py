"""The one line before the device: who wants it waits in order, and one at a time works, in a thread."""

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

_BEAT = 0.5  # seconds between two looks at whether anybody still waits

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """How far it is: tiles and faces done and all there are, or the place in the line, 0 at work."""

    done: int = 0
    total: int = 0
    place: int = 0


class QueueEntry:
    """A place in the line."""

    def __init__(self) -> None:
        self.left = self.used = False


class Worker:
    """Where photos are worked on, one at a time and in the order of their tickets, until the server closes.

    longest  how many may wait while one is worked on
    patience seconds without a step after which the one at work is given up, and the device with it: a thread
             inside of it cannot be ended
    stuck    set when that has happened; the worker is closed then, and only a new process helps
    """

    def __init__(self, longest: int = 20, patience: float = math.inf) -> None:
        self.longest, self.patience = longest, patience
        self.closed, self.stuck = False, threading.Event()
        self._line: list[QueueEntry] = []
        self._moved = threading.Condition()
        self._beat = time.monotonic()

    def check(self, *, always: bool = False) -> None:
        """Raise QueueFull where there is no place in the line, `always` only for a server that is ending."""
        if self.closed:
            raise QueueFull("the server is ending; try again in a minute")
        if len(self._line) > self.longest and not always:
            raise QueueFull(f"{self.longest} are waiting already, which is the limit; try again later")

    def join(self, *, always: bool = False) -> QueueEntry:
        """A place at the end of the line. Raises what check() does."""
        with self._moved:
            self.check(always=always)
            if not self._line:
                self._beat = time.monotonic()
            self._line.append(ticket := QueueEntry())
        return ticket

    def leave(self, ticket: QueueEntry) -> None:
        """Give up a place; what is worked on stops at its next step."""
        with self._moved:
            ticket.left = True
            at_work = ticket.used and self._line[:1] == [ticket]
            if ticket in self._line and not at_work:
                self._line.remove(ticket)
            self._moved.notify_all()

    def place(self, ticket: QueueEntry) -> int:
        """How many are before a ticket, the one at work included; 0 for one at work or through."""
        with self._moved:
            return self._line.index(ticket) if ticket in self._line else 0

    @property
    def waiting(self) -> int:
        """How many are in the line, the one at work included."""
        return len(self._line)

    @property
    def silent(self) -> float:
        """Seconds since the one at work last told of a step; 0 while there is none."""
        return time.monotonic() - self._beat if self._line else 0.0

    def watch(self) -> None:
        """Give the device up where it has been silent for too long. To be called now and then."""
        if self.silent > self.patience and not self.stuck.is_set():
            with self._moved:
                self.closed = True
                self.stuck.set()
                self._moved.notify_all()

    async def steps(
        self, make: Callable[[Progress], T], ticket: QueueEntry | None = None
    ) -> AsyncIterator[Step | T]:
        """Run `make(progress)` in a thread; yield a Step every half second and what it made at the end.

        Closing or cancelling stops the work within one step of its own, and the next one begins when it has
        ended. Raises what `make` raises, QueueFull where no ticket was given and there is none, and TimedOut
        where it is given up: its thread, should it ever come back, is stopped then.
        """
        ticket = ticket or self.join()
        latest = Step()

        def progress(done: int, total: int) -> None:
            nonlocal latest
            latest, self._beat = Step(done, total), time.monotonic()
            if ticket.left or self.closed:
                raise Cancelled("stopped")

        def work(answer: Future[T]) -> None:
            made = None
            try:
                with self._turn(ticket):
                    progress(0, 0)
                    made = make(progress)
                answer.set_result(made)  # who hears of it finds the place free
            except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
                if ticket.left:
                    answer.cancel()  # nobody will look
                else:
                    answer.set_exception(error)
            finally:
                del answer, made  # an error's traceback knows this frame: a ring would keep pictures alive

        answer: Future[T] = Future()
        ticket.used = True
        threading.Thread(target=work, args=(answer,), daemon=True).start()
        ended = asyncio.wrap_future(answer)
        try:
            while not (await asyncio.wait([ended], timeout=_BEAT))[0]:
                self.watch()
                if self.stuck.is_set() and self._line[:1] == [ticket]:
                    raise TimedOut(f"nothing was heard of it for {self.patience:g} seconds: it was given up")
                place = self.place(ticket)
                yield Step(place=place) if place else latest
            yield ended.result()
        finally:
            self.leave(ticket)
            del answer, ended  # for the same reason

    @contextmanager
    def _turn(self, ticket: QueueEntry) -> Iterator[None]:
        """The device, once all before have gone. Raises Cancelled for a ticket given up meanwhile."""
        try:
            with self._moved:
                self._moved.wait_for(lambda: ticket.left or self.closed or self._line[0] is ticket)
            if ticket.left or self.closed:
                raise Cancelled("stopped")
            yield
        finally:
            with self._moved:
                if ticket in self._line:
                    self._line.remove(ticket)
                self._beat = time.monotonic()
                self._moved.notify_all()

    def close(self, seconds: float) -> bool:
        """Stop the one at work and take no other; whether all have ended within that time."""
        with self._moved:
            self.closed = True
            self._line = [ticket for ticket in self._line if ticket.used]
            self._moved.notify_all()
            return self._moved.wait_for(lambda: not self._line, timeout=seconds)
