"""Train the damage detector and the filler: see `python -m training.damage --help`."""
