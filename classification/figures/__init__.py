"""Figures of a classifier: where its operators look."""
