"""What serves all parts: command lines, files and tables, devices, processes."""
