"""Files that are written durably and read with care."""
