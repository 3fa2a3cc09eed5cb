"""Figures, montages and the report page."""
