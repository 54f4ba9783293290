"""Model registry, weights sources, downloads and architectures."""
