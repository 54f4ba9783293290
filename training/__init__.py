"""Train the built-in model: see `python -m training --help`."""

import time

STARTED = time.monotonic()  # the time limit includes importing torch
