"""Recipes, the training loop, its optimizer, and the learning-rate finder."""
