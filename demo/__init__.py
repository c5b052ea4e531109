"""What the three demos share: the embedded garments, the composites made of them, and the steps of a demo."""
