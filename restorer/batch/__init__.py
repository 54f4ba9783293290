"""Restore folders of any size, each photo exactly once."""
