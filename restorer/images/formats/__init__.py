"""Image file formats and their metadata."""
