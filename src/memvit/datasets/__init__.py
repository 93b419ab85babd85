"""Data sets: videos with annotations, cut into clips and ordered into streams.

Every data set gives the same records (`clips.py`), so that streams, training and evaluation know nothing of its files.
"""
