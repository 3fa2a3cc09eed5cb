"""Models that take raw HU and return labels, as SavedModel or TFLite file, and the check that they agree with Keras."""
