"""Foreign models and engines."""
