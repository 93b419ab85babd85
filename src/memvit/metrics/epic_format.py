"""Submissions to the recognition and anticipation challenges of EPIC-KITCHENS-100: a JSON file in a zip.

The zip holds ``test.json``, whatever split it is for::

    {
      "version": "0.2",
      "challenge": "action_recognition",
      "sls_pt": 2, "sls_tl": 3, "sls_td": 3,
      "results": {
        "P00_01_0": {
          "verb": {"0": 1.223, ..., "96": 0.023},
          "noun": {"0": 0.804, ..., "299": 0.023},
          "action": {"0,1": 0.083, ...}
        }, ...
      }
    }

with raw scores of every verb and noun, and those of the 100 best actions, named by verb and noun. Evaluators rank actions by
these scores. Where they are left out, for every segment, they follow from verbs and nouns.

The supervision levels say what a model has learnt from: pre-training (pt), training labels (tl), training data (td), each from
0 to 5 (Damen and Wray, 2020, arXiv:2008.09890).
"""

from __future__ import annotations

from typing import Literal, get_args

VERSION = "0.2"
JSON_FILE = "test.json"
NUM_ACTIONS = 100
HIGHEST_LEVEL = 5

Challenge = Literal["action_recognition", "action_anticipation"]
CHALLENGES: tuple[Challenge, ...] = get_args(Challenge)
LEVELS = ("sls_pt", "sls_tl", "sls_td")


def check_challenge(challenge: object) -> None:
    """Finds a name that is of no challenge.

    Args:
        challenge: the name.

    Raises:
        ValueError: it is.
    """
    if challenge not in CHALLENGES:
        raise ValueError(f"challenge {challenge!r} is none of {', '.join(CHALLENGES)}")


def check_level(name: str, level: object) -> None:
    """Finds a supervision level that is none.

    Args:
        name: of the level.
        level: its value.

    Raises:
        ValueError: it is no whole number from 0 to 5.
    """
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= HIGHEST_LEVEL:
        raise ValueError(f"{name} {level!r} is no supervision level: give a whole number from 0 to {HIGHEST_LEVEL}")
