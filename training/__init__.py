"""How the built-in model was made: `python -m training --help`."""
