"""Heatmaps of findings, tests of these heatmaps, and uncertainty by test-time augmentation."""
