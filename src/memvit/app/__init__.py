"""The web page of `memvit serve`: visitors share one model, each with a memory of their own."""

from memvit.app.limits import Limits
from memvit.app.server import create_app
from memvit.app.service import Service

__all__ = ["Limits", "Service", "create_app"]
