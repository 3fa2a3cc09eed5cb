"""Why the network says so: Seg-Grad-CAM, tests of its maps, and uncertainty by test-time variation."""
