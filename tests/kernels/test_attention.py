"""The fast form of a kernel computes what its plain definition says, forward and backward."""

import pytest
import torch
from torch import Tensor

from memvit.kernels import AttentionTerm, attention, reference_kernels
from memvit.kernels.attention import KeyMask


def make_inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    qkv = [leaf(2, 3, 17, 16), leaf(2, 3, 11, 16), leaf(2, 3, 11, 16)]
    entries = [torch.tensor([-1, 0, 1, 2, 3, 0, 1, 2, 3, -1, 2]), torch.tensor([-1] * 5 + [0, 1, 0, 1, 0, -1])]
    return qkv, [AttentionTerm(leaf(2, 3, 17, 4), entries[0]), AttentionTerm(leaf(1, 1, 17, 2), entries[1])]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_terms", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
def test_attention_equals_its_definition(dtype: torch.dtype, tolerance: float, with_terms: bool, masked: bool) -> None:
    mask = KeyMask(torch.tensor([[True] * 9 + [False] * 2, [False] * 3 + [True] * 8])) if masked else None

    def run(reference: bool) -> list[Tensor]:
        (q, k, v), terms = make_inputs(dtype)
        if reference:
            with reference_kernels():
                out = attention(q, k, v, terms=terms if with_terms else (), key_mask=mask)
        else:
            out = attention(q, k, v, terms=terms if with_terms else (), key_mask=mask)
        leaves = [q, k, v] + ([t.values for t in terms] if with_terms else [])
        return [
            out,
            *torch.autograd.grad(out.float().square().sum() if dtype != torch.float64 else out.square().sum(), leaves),
        ]

    for fast, plain in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_a_mask_of_clips_is_one_of_their_keys() -> None:
    seen = torch.tensor([[False, True], [True, True]])
    taken = KeyMask.of_clips(seen, 2, 3).taken
    assert taken.tolist() == [[False] * 2 + [True] * 5, [True] * 7]


def test_a_masked_key_has_no_weight_at_all() -> None:
    (q, k, v), terms = make_inputs(torch.float32)
    mask = torch.ones(1, 11, dtype=torch.bool)
    mask[0, 4] = False
    changed = v.detach().clone()
    changed[:, :, 4] = 1e6
    torch.testing.assert_close(
        attention(q, k, v, terms=terms, key_mask=KeyMask(mask)),
        attention(q, k, changed, terms=terms, key_mask=KeyMask(mask)),
        rtol=0,
        atol=0,
    )
