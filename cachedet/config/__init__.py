"""What a user decides, validated once."""
