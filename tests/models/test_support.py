"""How far back the model sees: exactly as far as it says, no clip further."""

import pytest
import torch
from torch import Tensor

from memvit import MeMViT
from tiny_models import small_model


def deep_model(memory_layers: tuple[int, ...], **overrides: object) -> MeMViT:
    strides = tuple((i, 1, 2, 2) if i == 1 else (i, 1, 1, 1) for i in range(8))
    return small_model(
        depth=8, dim_mul=((1, 2.0),), head_mul=((1, 2.0),), q_strides=strides, memory_layers=memory_layers, **overrides
    ).double()


@torch.inference_mode()
def clips_back_that_matter(model: MeMViT, furthest: int) -> list[int]:
    """The k for which changing the clip k clips back changes the last clip's logits, in float64, to the last bit."""

    def last_logits(is_changed: bool) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        memory = None
        for clips_back in range(furthest, -1, -1):  # stream k has clip k changed
            clip = torch.randn(1, 3, 4, 32, 32, generator=generator, dtype=torch.float64).repeat(
                furthest + 1, 1, 1, 1, 1
            )
            if is_changed:
                clip[clips_back] += torch.randn(
                    3, 4, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64
                )
            logits, memory = model(clip, memory)
        return logits

    return (last_logits(False) != last_logits(True)).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("memory_layers", [(2, 5), tuple(range(8))])
def test_support_is_exactly_what_is_stated(length: int, memory_layers: tuple[int, ...]) -> None:
    model = deep_model(memory_layers, memory_length=length)
    support = model.config.support_clips
    assert support == len(memory_layers) * length
    assert clips_back_that_matter(model, support + 2) == list(range(support + 1))


def test_joint_compression_and_none_reach_as_far() -> None:
    for compression in ("joint", "none"):
        model = deep_model((2, 5), memory_length=2, memory_compression=compression)
        assert clips_back_that_matter(model, 6) == [0, 1, 2, 3, 4]


def test_gap_sees_every_nth_clip_n_times_as_far() -> None:
    model = deep_model((2, 5), memory_length=2, memory_gap=3)
    assert model.config.support_clips == 12
    assert clips_back_that_matter(model, 14) == [0, 3, 6, 9, 12]


def test_without_memory_nothing_before_the_clip_matters() -> None:
    assert clips_back_that_matter(deep_model((2, 5), memory_length=0), 2) == [0]


def test_support_in_seconds_is_the_papers() -> None:
    from memvit.models.presets import PRESETS

    config = PRESETS["memvit_16x4"]
    assert config.support_s == pytest.approx(36.3, abs=0.05)
    assert config.replace(memory_length=4).support_s == pytest.approx(70.4, abs=0.05)
