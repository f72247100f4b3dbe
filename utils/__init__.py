"""What knows nothing of faces or ages; each file names one thing."""
