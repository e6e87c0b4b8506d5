"""Charges along a trajectory: first guesses, and auxiliary charges with their own dynamics."""
