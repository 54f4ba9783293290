"""`python tests/held.py`: the app, in which jobs with custom/slow can be held after their first tile.

They are held while a file named `hold` lies beside UPLOAD_FOLDER, and can be cancelled meanwhile. With
ENDLESS in the environment the first tile never ends.
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

HOLD = Path(os.environ["UPLOAD_FOLDER"]).parent / "hold"


def restore(
    self: Restorer, data: bytes | Photo, *, progress: Progress | None = None, **options: object
) -> Result:
    def held(done: int, total: int) -> None:
        if "ENDLESS" in os.environ:
            threading.Event().wait()
        progress(done, total)
        while 1 < done < total and HOLD.exists():
            time.sleep(0.05)
            progress(done, total)

    slow = options.get("model", self.options.model) == "custom/slow"
    return real_restore(self, data, progress=held if progress and slow else progress, **options)


real_restore = Restorer.restore


def main() -> None:
    Restorer.restore = restore
    app.main()


if __name__ == "__main__":
    main()
