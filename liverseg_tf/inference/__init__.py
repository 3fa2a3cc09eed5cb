"""Inference: from slices of HU to masks of whole volumes."""
