"""Samples with pictures: conversations and documents in several formats, the pictures that they show, and charts that
are drawn from a seed."""
