"""From a data set as released to lists of aligned faces."""
