"""What trains and evaluates a classifier: the loop, the optimizer, processes, checkpoints of a run, its log."""
