"""Measurements across several trained runs, one file a kind."""
