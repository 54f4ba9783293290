"""What single file formats need beyond Pillow: their chunks and segments, deep samples, EXIF and XMP."""
