"""Scores and images of detections."""
