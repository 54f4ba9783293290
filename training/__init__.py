"""Train the built-in model: see `python -m training --help`."""

import time

STARTED = time.monotonic()  # the time limit includes importing torch

import restorer  # noqa: E402, F401  # configures OpenMP, before torch is imported
