"""Models that begin with the weights of another network: fewer layers of it, or experts where it has none."""
