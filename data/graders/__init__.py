"""Graders: how right an answer is, for evaluation and for rewards. No JAX."""
