"""The subcommands of `memvit`, one file each; `memvit.cli` makes options of their signatures and docstrings.

What is heavy is imported when a command runs, so that help and version come at once.
"""
