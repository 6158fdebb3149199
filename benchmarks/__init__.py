"""Benchmarks: every figure is a ratio against a yardstick of the same run."""
