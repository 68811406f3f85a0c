"""Benchmarks: suites are TOML files, every run is one JSON file, tables and plots are made from those files."""
