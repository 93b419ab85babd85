"""Operators of the model, each beside the plain PyTorch that defines it."""

from memvit.kernels.attention import AttentionTerm, attention
from memvit.kernels.backend import reference_kernels

__all__ = ["AttentionTerm", "attention", "reference_kernels"]
