"""What is wrong with a data set, before hours of work are spent on it."""
