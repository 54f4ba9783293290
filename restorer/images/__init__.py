"""Photos: decoding, encoding, metadata, colour and resampling."""
