"""Build classifiers from the configuration."""

from .intern_image import build_model

__all__ = ["build_model"]
