"""Trained detectors on image files: what `predict` is made of."""
