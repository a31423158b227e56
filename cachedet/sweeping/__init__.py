"""A search over configs on one cache, and an honest verdict about what it found."""
