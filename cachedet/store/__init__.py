"""The feature cache on disk. Knows nothing of detection."""
