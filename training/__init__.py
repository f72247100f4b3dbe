"""A training run: its parts, its loop over epochs, its files; tools around a training."""
