"""Figures of a classifier: its predictions, its training curve, and where its operators look."""
