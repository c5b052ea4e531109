"""The segmentation demo: a small UperNet InternImage labels garments in composites (`python -m segmentation.demo`)."""
