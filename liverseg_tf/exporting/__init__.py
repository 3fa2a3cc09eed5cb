"""Artefacts that take raw HU and give labels: SavedModel, TFLite, their parity, and a client for TensorFlow Serving."""
