"""Run upscaling networks over photos in tiles."""
