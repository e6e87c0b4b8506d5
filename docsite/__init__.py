"""What the pages of the documentation are made of: examples, tables of the code, benchmarks."""
