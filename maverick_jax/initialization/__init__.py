"""Initializes models with the weights of another model: some of its layers, or experts in place of dense layers."""
