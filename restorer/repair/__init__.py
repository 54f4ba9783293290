"""Find damage in photos of old prints and negatives, and fill it."""
