"""ZeroGPU: a Space that has no GPU of its own is lent one for each photo.

What spaces.GPU decorates runs in a fork of this process, and only there is CUDA: so the network is loaded and
run in it, nothing is measured here, and errors come back as values (spaces keeps no more than their class).
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator

import spaces  # before torch, which it changes  # type: ignore[import-untyped]

from ..errors import Cancelled, RestoreError
from ..images.photo import Photo
from ..pipeline import Restorer
from ..progress import Progress
from ..result import Result

_SECONDS = 120  # that the GPU is asked for; a photo that needs longer is stopped by the Space
Step = tuple[int, int] | Result | Exception


class ZeroGpuRestorer(Restorer):
    """A Restorer whose restore() runs on a GPU that is lent for it."""

    def __init__(self, **given: object) -> None:
        super().__init__(**given)  # type: ignore[arg-type]

        def steps(data: bytes | Photo, options: dict[str, object]) -> Iterator[Step]:
            yield from _steps(super(ZeroGpuRestorer, self).restore, data, options)

        self._lent = spaces.GPU(duration=_SECONDS)(steps)

    def measure(self, pixels: int = 0, **options: object) -> None:
        """Nothing: what would be timed has a device in the fork only, so no seconds are told."""

    def restore(self, data: bytes | Photo, *, progress: Progress | None = None, **options: object) -> Result:
        """As Restorer.restore()."""
        for step in self._lent(data, options):
            if isinstance(step, Result):
                return step
            if isinstance(step, Exception):
                raise step
            if progress:
                progress(*step)
        raise RestoreError("the GPU was taken away before the photo was done; try again")


def _steps(restore: Callable[..., Result], data: bytes | Photo, options: dict[str, object]) -> Iterator[Step]:
    """What restore() tells of its progress, then its result or its error; closing it stops the work."""
    told: queue.SimpleQueue[Step] = queue.SimpleQueue()
    left = threading.Event()

    def progress(done: int, total: int) -> None:
        if left.is_set():
            raise Cancelled("nobody waits for it any more")
        told.put((done, total))

    def work() -> None:
        try:
            told.put(restore(data, progress=progress, **options))
        except RestoreError as error:
            told.put(error)
        except Exception as error:  # noqa: BLE001  one photo of the queue: who waits must hear of it
            logging.getLogger(__name__).exception("a restoration failed")
            told.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while isinstance(step := told.get(), tuple):
            yield step
        yield step
    finally:
        left.set()
        thread.join()
