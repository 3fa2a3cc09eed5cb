"""Folders of CTs in, folders of results out: what needs more than one room."""
