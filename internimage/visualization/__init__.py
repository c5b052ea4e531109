"""Pictures of what a trained model sees: sampling points, mask weights, features, activation, receptive field."""

from .pictures import visualize

__all__ = ["visualize"]
