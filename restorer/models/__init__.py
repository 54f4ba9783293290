"""Models: registry, sources of weights, downloads and architectures."""
