"""The detection demo: a small Mask R-CNN InternImage finds garments in composites (`python -m detection.demo`)."""
