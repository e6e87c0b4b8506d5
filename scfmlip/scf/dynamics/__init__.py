"""Charges along a trajectory: first guesses, and dynamics of their own."""
