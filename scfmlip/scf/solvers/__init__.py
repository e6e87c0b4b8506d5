"""Solvers of ragged batches: every system converges by itself, and none waits for another's answer."""
