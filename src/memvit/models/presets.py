"""The named models: the paper's, and two of ours."""

from __future__ import annotations

from memvit.models.config import HeadConfig, MemoryConfig, MViTConfig

# The paper's default: M = 2, every other layer, 4x2x2 compression with a 7x3x3 kernel.
_MEMORY = MemoryConfig(length=2, layers="uniform", compression="pipelined", kernel=(7, 3, 3), stride=(4, 2, 2))

# AVA (paper section 5.1): 80 actions per box, each on its own.
_AVA_HEAD = HeadConfig(
    num_classes=(80,),
    task="boxes",
    activation="sigmoid",
    dropout=0.5,
    spatial_scale_factor=32,
    box_depth=1,
    box_dropout=0.3,
    box_attention_dropout=0.5,
    box_qkv_dropout=0.3,
)

_MVIT_16 = MViTConfig(drop_path=0.4)


def _stages(depth: int, starts: tuple[int, ...]) -> dict[str, object]:
    """Width and heads double, and space halves, where a stage starts."""
    return {
        "depth": depth,
        "dim_mul": tuple((i, 2.0) for i in starts),
        "head_mul": tuple((i, 2.0) for i in starts),
        "q_strides": tuple((i, 1, 2, 2) if i in starts else (i, 1, 1, 1) for i in range(depth)),
    }


_MVIT_24 = _MVIT_16.replace(num_frames=32, sampling_rate=3, num_classes=600, **_stages(24, (2, 5, 21)))

# Small enough for a laptop: a fifth of a second of two cores for two seconds of video, decoding included.
_TINY = MViTConfig(
    crop_size=112,
    embed_dim=32,
    drop_path=0.1,
    kv_stride_adaptive=(1, 4, 4),
    memory=_MEMORY,
    head=HeadConfig(dropout=0.1),
).replace(**_stages(8, (1, 2, 6)))

# ViT-S with 2x16x16 patches and no pooling at all: the same memory in a plain vision transformer.
_VIT_SMALL = MViTConfig(
    depth=12,
    embed_dim=384,
    num_heads=6,
    patch_kernel=(2, 16, 16),
    patch_stride=(2, 16, 16),
    patch_padding=(0, 0, 0),
    dim_mul=(),
    head_mul=(),
    q_strides=(),
    kv_stride_adaptive=None,
    pool_kernel=None,
    residual_pooling="none",
    drop_path=0.1,
    memory=_MEMORY,
    head=HeadConfig(spatial_scale_factor=16),
)

# For generated videos and demos: a second of 64 x 64 pixels, all of whose blocks remember; trains on a CPU in minutes.
_NANO = MViTConfig(
    num_frames=8,
    sampling_rate=1,
    crop_size=64,
    fps=8.0,
    patch_kernel=(3, 11, 11),
    patch_stride=(2, 8, 8),
    patch_padding=(1, 5, 5),
    class_token=False,
    embed_dim=32,
    num_heads=2,
    drop_path=0.0,
    kv_stride_adaptive=(1, 2, 2),
    memory=MemoryConfig(length=2, layers="all", kernel=(3, 3, 3), stride=(2, 2, 2)),
    head=HeadConfig(dropout=0.0, spatial_scale_factor=16),
).replace(**_stages(4, (1,)))

PRESETS: dict[str, MViTConfig] = {
    "mvit_16x4": _MVIT_16,
    "memvit_16x4": _MVIT_16.replace(memory=_MEMORY),
    "mvit_16x4_ava": _MVIT_16.replace(head=_AVA_HEAD),
    "memvit_16x4_ava": _MVIT_16.replace(memory=_MEMORY, head=_AVA_HEAD, memory_gap=2),
    "mvit_24_32x3": _MVIT_24,
    "memvit_24_32x3": _MVIT_24.replace(memory=_MEMORY),
    "mvit_24_32x3_ava": _MVIT_24.replace(head=_AVA_HEAD),
    "memvit_24_32x3_ava": _MVIT_24.replace(memory=_MEMORY, head=_AVA_HEAD, memory_gap=3),
    "memvit_tiny": _TINY,
    "memvit_nano": _NANO,
    "memvit_vit_small": _VIT_SMALL,
}
