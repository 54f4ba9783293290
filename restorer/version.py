"""The package's version."""

__version__ = "0.1.0"
SOFTWARE = f"Neural Image Restore {__version__}"
