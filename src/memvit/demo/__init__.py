"""The demo: a shell game that is generated on the spot, watched by a model with memory and one without."""
