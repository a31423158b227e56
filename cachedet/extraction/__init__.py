"""How features get from picture files into a store: inputs, stages, ranks."""
