"""The command line: `python -m restorer photo.jpg scans/ -o out/`."""
