"""Detectors and segmentors of mmdet and mmseg in the form that `internimage.export` writes."""
