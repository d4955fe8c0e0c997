"""Benchmarks: one file per workload family, peers side by side in one run, ratios before times."""
