"""The design space on real systems: `python -m bench.study` trains, tests and writes up every charge rule."""
