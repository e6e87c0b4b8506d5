"""Benchmarks: ours and our peers side by side, checked against each other before they are timed."""
