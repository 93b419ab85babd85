"""The model, in pure PyTorch: it knows nothing of video files, training or the command line."""

from memvit.lazy import lazy_modules

__getattr__ = lazy_modules(__name__)
