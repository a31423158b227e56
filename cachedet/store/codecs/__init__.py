"""From maps to stored integers and back."""
