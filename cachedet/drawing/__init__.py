"""Boxes, masks and names drawn on images, in any script."""
