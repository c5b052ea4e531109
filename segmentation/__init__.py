"""Semantic segmentation with InternImage on mmseg 1."""
