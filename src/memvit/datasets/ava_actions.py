"""The 80 atomic actions of AVA v2.2, and which 60 of them its evaluation counts (Gu et al., CVPR 2018)."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

LABEL_MAP = files("memvit.datasets").joinpath("ava_actions.csv")


@cache
def action_names() -> dict[int, str]:
    """The names of all actions by their ids, 1 to 80, in the order of the ids."""
    return {int(row["id"]): row["name"] for row in _rows()}


@cache
def evaluated_actions() -> frozenset[int]:
    """Ids of the actions that the official evaluation counts."""
    return frozenset(int(row["id"]) for row in _rows() if row["evaluated"] == "1")


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader(LABEL_MAP.read_text(encoding="utf-8").splitlines()))
