"""Measure the quality of restorations."""
