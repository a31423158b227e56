"""What is trained: necks and heads on features. Knows nothing of disks."""
