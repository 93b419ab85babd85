"""Times of contenders that take turns, and what can be said from them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

K = TypeVar("K", bound=Hashable)

Step = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def take_turns(
    steps: Mapping[K, Step],
    num_rounds: int,
    device: torch.device,
    num_warmup: int = 1,
    on_round: Callable[[], None] = lambda: None,
) -> dict[K, list[float]]:
    """Times steps that take turns, so that a machine that slows down slows down all of them.

    Every second round runs in the opposite order: no contender always follows the same one.

    Args:
        steps: what to time.
        num_rounds: how often each is timed.
        device: what they run on; it is waited for before and after each.
        num_warmup: rounds before those, not counted.
        on_round: called after every round.

    Returns:
        Seconds of each, in the order of rounds.
    """
    seconds: dict[K, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(-num_warmup, num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            synchronize(device)
            began_s = time.perf_counter()
            steps[name]()
            synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began_s)
        on_round()
    return seconds


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval that holds the median with at least this probability, whatever the distribution.

    Its ends are two of the values, the k-th smallest and the k-th largest: the median lies outside if fewer than k values
    fell on one side of it, as in too few heads of n coin tosses. k is as large as the probability allows.

    Returns:
        The two ends; None where even the smallest and the largest value are not enough (below 6 values at 95 %).
    """
    n = len(values)
    outside, k = 2 * 0.5**n, 0  # P(fewer than k + 1 of n on one side), both sides
    while outside <= 1 - confidence and k < n // 2:
        k += 1
        outside += 2 * math.comb(n, k) * 0.5**n
    if k == 0:
        return None
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


@dataclass(frozen=True)
class Estimate:
    """The median of repeated measurements.

    Attributes:
        median: theirs.
        interval: where the true median lies with 95 % probability; None where they are too few to say.
    """

    median: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from these values, of which there is one or more."""
        return cls(statistics.median(values), median_interval(values))


def paired_ratio(seconds: Sequence[float], base: Sequence[float]) -> Estimate:
    """How many times as long as `base` something takes, by the rounds in which both were timed.

    Raises:
        ValueError: of another number of rounds.
    """
    return Estimate.of([own / other for own, other in zip(seconds, base, strict=True)])


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """A quarter of the values is below the first and a quarter above the second."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
