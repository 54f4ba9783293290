"""Measure and estimate what a photo costs."""
