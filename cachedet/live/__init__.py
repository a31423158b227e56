"""Training with the backbone in every step: what a cache is compared with."""
