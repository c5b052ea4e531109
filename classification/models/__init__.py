"""Classifiers from the configuration, over the one backbone in `internimage`."""

from .intern_image import build_model

__all__ = ["build_model"]
