"""A web page of what was recognised in a video, in one file: the video, a timeline, and what goes on at every moment."""

from memvit.report.page import DEFAULT_MAX_MB, DEFAULT_MAX_WIDTH, REPORT_FILE, write_report

__all__ = ["DEFAULT_MAX_MB", "DEFAULT_MAX_WIDTH", "REPORT_FILE", "write_report"]
