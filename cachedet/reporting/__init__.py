"""The page of a run: what was measured, put in the order in which a researcher decides."""
