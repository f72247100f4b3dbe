"""Photos, clips and cameras: read, drawn on, written."""
