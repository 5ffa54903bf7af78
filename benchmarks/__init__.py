"""Measurements: `python -m benchmarks`. Nothing here is imported by the package."""
