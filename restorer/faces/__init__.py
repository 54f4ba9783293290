"""Faces: find them, restore them at 512 pixels, and put them back."""
