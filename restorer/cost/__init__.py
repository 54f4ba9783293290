"""Measure and estimate the cost of a photo."""
