"""The golden cases: what the authors' release printed, and how to rebuild its weights and clips (tests/golden)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import memvit

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def golden_weight(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """The weight that the golden runs gave to a parameter of this name (the release's) and shape."""
    w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    own_name = name.split(".")[-2 if name.endswith((".weight", ".bias")) else -1]
    fan_in = np.sqrt(np.prod(shape[1:]))
    if len(shape) == 1:
        w = 1 + 0.1 * w if name.endswith(".weight") else 0.1 * w
    elif own_name.startswith(("pool_", "compress_")):
        w = 2 * w / fan_in
    elif own_name.startswith("rel_pos"):
        w = 0.3 * w
    elif name.startswith("patch_embed") or len(shape) == 2:
        w = 1.5 * w / fan_in
    else:
        w = 0.5 * w
    return torch.from_numpy(np.asarray(w, dtype=np.float32))


def fill_golden(model: memvit.MeMViT) -> memvit.MeMViT:
    """Gives any model weights by the same rule: large enough that every path shows in the output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(golden_weight(name, tuple(parameter.shape)))
    return model


class GoldenCase:
    """One golden run."""

    def __init__(self, name: str) -> None:
        self.name = name
        facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.clip_shape: tuple[int, ...] = tuple(facts["clip_shape"])
        self.video_ids: list[list[int]] = facts["video_ids_per_step"]
        self.boxes = facts["boxes_per_step"]
        self.gradient_step: int | None = facts["grads_at_step"]
        self.expected = np.load(GOLDEN / f"{name}.npz")

    def model(self) -> memvit.MeMViT:
        shapes = json.loads((GOLDEN / f"{self.name}.shapes.json").read_text())
        state = {name: golden_weight(name, shape) for name, shape in shapes.items()}
        boundary = "zero" if self.name.startswith(("cls_zero", "zero")) else "mask"
        return memvit.load_slowfast(GOLDEN / f"{self.name}.yaml", state, boundary=boundary)

    def clips(self, step: int) -> Tensor:
        shape = (len(self.video_ids[step]), *self.clip_shape)
        return torch.from_numpy(np.random.default_rng(1000 + step).standard_normal(shape, dtype=np.float32))

    def boxes_at(self, step: int) -> list[Tensor] | None:
        if self.boxes is None:
            return None
        rows = self.boxes[step]
        return [torch.tensor([r[1:] for r in rows if r[0] == b]).view(-1, 4) for b in range(len(self.video_ids[step]))]

    def boundaries_at(self, step: int) -> Tensor:
        """bool (B,): streams whose video differs from the step before."""
        before = self.video_ids[max(step - 1, 0)]
        return torch.tensor([a != b for a, b in zip(self.video_ids[step], before, strict=True)])

    def expected_logits(self, step: int) -> list[np.ndarray]:
        names = sorted(n for n in self.expected.files if n.startswith("logits") and n.endswith(f"/{step}"))
        return [self.expected[name] for name in names]
