"""`python tests/paced.py`: the app, with at least PACE seconds per step of custom/slow on any processor.

With PACE=inf the first step never ends. A step is a tile or a face; one more precedes the first.
"""

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import app
from restorer import Restorer, Result
from restorer.images.photo import Photo
from restorer.progress import Progress

PACE = float(os.environ["PACE"])


def restore(
    self: Restorer, data: bytes | Photo, *, progress: Progress | None = None, **options: object
) -> Result:
    def paced(done: int, total: int) -> None:
        if progress:
            progress(done, total)
        if float("inf") == PACE:
            threading.Event().wait()
        time.sleep(PACE)

    slow = options.get("model", self.options.model) == "custom/slow"
    return real_restore(self, data, progress=paced if slow else progress, **options)


if __name__ == "__main__":
    real_restore, Restorer.restore = Restorer.restore, restore
    app.main()
