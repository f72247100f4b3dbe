"""Networks that are built here, and first weights that have learned faces."""
