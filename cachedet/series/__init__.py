"""Many trainings in one folder: what `compare` and `sweep` share."""
