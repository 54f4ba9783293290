"""Detect faces, restore them at 512 pixels, and paste them back."""
