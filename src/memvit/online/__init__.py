"""Online recognition: frames in, predictions out, with memory."""

from memvit.online.prediction import ClipPrediction
from memvit.online.recognizer import OnlineRecognizer

__all__ = ["ClipPrediction", "OnlineRecognizer"]
