"""Interfaces to models and simulation engines of other packages."""
