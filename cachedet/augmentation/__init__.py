"""What moves maps and the boxes on them."""
