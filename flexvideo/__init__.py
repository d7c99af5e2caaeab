"""Run and train any video state-space model at any frame count, frame size and patch size."""

__version__ = "0.1.0"
