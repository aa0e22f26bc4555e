"""A world without GPU, network or key, in which the unmodified method files really run."""
