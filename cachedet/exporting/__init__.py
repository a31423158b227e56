"""A trained detector and its backbone as one file that other programs run."""
