"""Online recognition: frames in, predictions out, with memory."""

from memvit.online.box_files import BoxFile
from memvit.online.boxes import BoxRecognizer, KeyframePrediction
from memvit.online.detectors import PersonDetector, create_detector
from memvit.online.persons import DetectedPersons, Person
from memvit.online.prediction import ClipPrediction
from memvit.online.recognizer import OnlineRecognizer
from memvit.online.shared_engine import SharedEngine

__all__ = [
    "BoxFile",
    "BoxRecognizer",
    "ClipPrediction",
    "DetectedPersons",
    "KeyframePrediction",
    "OnlineRecognizer",
    "Person",
    "PersonDetector",
    "SharedEngine",
    "create_detector",
]
