"""What lies where in a store."""
