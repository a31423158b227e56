"""How features get from image files into a store: inputs, stages, ranks."""
