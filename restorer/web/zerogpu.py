"""Restore on a ZeroGPU Space, which attaches a GPU for one photo at a time.

spaces.GPU runs a function in a fork of this process, and only the fork has CUDA. Networks are loaded and run
there, nothing is measured here, and errors are returned as values, since spaces preserves only their class.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator

import spaces  # before torch, which it patches  # type: ignore[import-untyped]

from ..errors import Cancelled, RestoreError
from ..images.photo import Photo
from ..pipeline import Restorer
from ..progress import Progress
from ..result import Result

_GPU_SECONDS = 120  # the Space stops a photo that takes longer
Step = tuple[int, int] | Result | Exception


class ZeroGpuRestorer(Restorer):
    """A Restorer whose restore() runs on a ZeroGPU device."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.networks.repair_device = "cpu"  # the page looks for damage outside the fork

        def steps(data: bytes | Photo, options: dict[str, object]) -> Iterator[Step]:
            yield from _steps(super(ZeroGpuRestorer, self).restore, data, options)

        self._run_on_gpu = spaces.GPU(duration=_GPU_SECONDS)(steps)

    def measure(self, pixels: int = 0, **options: object) -> None:
        """Do nothing: only the fork has the device, so no time is estimated."""

    def restore(self, data: bytes | Photo, *, progress: Progress | None = None, **options: object) -> Result:
        """Restore as Restorer.restore() does."""
        for step in self._run_on_gpu(data, options):
            if isinstance(step, Result):
                return step
            if isinstance(step, Exception):
                raise step
            if progress:
                progress(*step)
        raise RestoreError("ZeroGPU took the GPU away before the photo was finished; try again")


def _steps(restore: Callable[..., Result], data: bytes | Photo, options: dict[str, object]) -> Iterator[Step]:
    """Yield the progress of restore(), then its result or error; closing the generator stops it."""
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    closed = threading.Event()

    def progress(done: int, total: int) -> None:
        if closed.is_set():
            raise Cancelled("the client has left")
        steps.put((done, total))

    def work() -> None:
        try:
            steps.put(restore(data, progress=progress, **options))
        except RestoreError as error:
            steps.put(error)
        except Exception as error:  # noqa: BLE001  one job of the queue: the caller must get the error
            logging.getLogger(__name__).exception("restoration failed")
            steps.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while isinstance(step := steps.get(), tuple):
            yield step
        yield step
    finally:
        closed.set()
        thread.join()
