"""File formats and the metadata they carry."""
