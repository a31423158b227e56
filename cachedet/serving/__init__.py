"""The local page of `serve`: an image goes in, a browser shows what the detector finds in it."""
