"""The parts of the training loop: batches, schedule, checkpoints, the log."""
