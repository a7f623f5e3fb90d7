"""Microbenchmarks against peers measured in the same run; see harness.py."""
