"""Experiments of the paper as figures: what is trained, what is measured, and which claims are decided."""
