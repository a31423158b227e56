"""Batches of cached features: which, from where, decoded where."""
