"""Metrics: how good predictions are, by the definitions of each benchmark."""
