"""Scores of masks against reference masks, as the LiTS challenge counts them and beyond."""
