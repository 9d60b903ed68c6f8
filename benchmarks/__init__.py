"""Benchmarks against other libraries: commands for people, not part of the package."""
