"""A training run: its parts, its course, its files."""
