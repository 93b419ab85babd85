"""Metrics: how good predictions are, by the definitions of each benchmark."""

from memvit.lazy import lazy_modules

__getattr__ = lazy_modules(__name__)
