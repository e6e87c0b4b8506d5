"""Solvers for ragged batches: systems converge independently of each other."""
