"""Why the network says so: heatmaps, what they are worth, and disagreement over test-time variations."""
