"""What a cache will cost and save on this machine, measured on a sample before it is made."""
