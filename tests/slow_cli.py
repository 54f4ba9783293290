"""`python tests/slow_cli.py ARGUMENTS`: the command line, with at least 0.2 s per photo on any processor."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from restorer.__main__ import main
from restorer.pipeline import Restorer


def restore(self: Restorer, data: bytes, **options: object) -> object:
    time.sleep(0.2)
    return real_restore(self, data, **options)


if __name__ == "__main__":
    real_restore, Restorer.restore = Restorer.restore, restore
    sys.exit(main(sys.argv[1:]))
