"""Intervals with a promised coverage, from a site's own labelled cases."""
