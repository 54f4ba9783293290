"""Entry point of `python -m restorer`, see cli/main.py."""

import sys

from .cli.main import main
from .exit_status import escape_unprintable

if __name__ == "__main__":
    escape_unprintable()
    sys.exit(main())
