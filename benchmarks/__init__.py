"""What measures speed, and what compares losses."""
