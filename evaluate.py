"""Evaluate restorations: `python evaluate.py` writes a report on test_inputs/ to test_results/.

Each photo is degraded by a seeded recipe, restored, and compared with the original and with bicubic.
"""

import sys

from restorer.evaluation.cli import main
from restorer.exit_status import escape_unprintable

if __name__ == "__main__":
    escape_unprintable()
    sys.exit(main())
