"""Train the built-in model: see `python -m training --help`."""
