"""Detection and instance segmentation with InternImage on mmdet 3."""
