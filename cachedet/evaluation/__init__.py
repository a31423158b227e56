"""Scores and pictures of detections."""
