"""Pairs: two answers, or two runs of one task, of which one is preferred."""
