"""Decode and encode photos; their metadata, colour and resampling."""
