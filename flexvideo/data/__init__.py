"""Videos in: decoding, clip sampling, and synthetic motion."""
