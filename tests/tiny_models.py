"""Small models for tests: every mechanism of the large ones, in milliseconds."""

from typing import Any

import memvit
from golden_cases import fill_golden
from memvit.models.config import HeadConfig, MemoryConfig, MViTConfig


def small_config(**overrides: Any) -> MViTConfig:
    """Four blocks with two stages on clips of 4 x 32 x 32; memory in all blocks unless told otherwise."""
    config = MViTConfig(
        num_frames=4,
        crop_size=32,
        depth=4,
        embed_dim=8,
        dim_mul=((1, 2.0), (3, 2.0)),
        head_mul=((1, 2.0), (3, 2.0)),
        q_strides=((0, 1, 1, 1), (1, 1, 2, 2), (2, 1, 1, 1), (3, 1, 2, 2)),
        kv_stride_adaptive=(1, 4, 4),
        drop_path=0.0,
        memory=MemoryConfig(length=2, layers="all", kernel=(3, 3, 3), stride=(2, 2, 2)),
        head=HeadConfig(num_classes=(5,), dropout=0.0, spatial_scale_factor=16, box_drop_path=0.0),
    )
    return config.replace(**overrides)


def small_model(**overrides: Any) -> memvit.MeMViT:
    """That model in eval mode, with weights by the golden rule, under which every path shows in the output."""
    return fill_golden(memvit.MeMViT(small_config(**overrides))).eval()


# What makes it smaller still, for what takes long: being compiled, or interpreted.
TWO_BLOCKS: dict[str, Any] = {
    "depth": 2,
    "dim_mul": ((1, 2.0),),
    "head_mul": ((1, 2.0),),
    "q_strides": ((0, 1, 1, 1), (1, 1, 2, 2)),
}
ONE_BLOCK: dict[str, Any] = {"depth": 1, "dim_mul": (), "head_mul": (), "q_strides": ((0, 1, 2, 2),)}
