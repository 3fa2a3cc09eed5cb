"""What pictures of slices may be written as, the default first. Loads nothing heavy."""

IMAGE_FORMATS = ("jpg", "png")
