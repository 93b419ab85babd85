"""What is kept of parameters is worked out anew after whatever changes them."""

from collections.abc import Callable

import pytest
import torch

import memvit
from memvit.models.memvit import MeMViT
from memvit.online import OnlineRecognizer


@pytest.fixture
def model() -> MeMViT:
    torch.manual_seed(0)
    return memvit.create_model("memvit_nano", num_classes=5).eval()


def _multiply(model: MeMViT) -> None:
    for p in model.parameters():
        p.data.mul_(1.2)


def _copy(model: MeMViT) -> None:
    for p in model.parameters():
        p.data.copy_(p.data.flip(0))


def _zero_one(model: MeMViT) -> None:
    model.blocks[1].attn.k.weight.data.zero_()


@pytest.mark.parametrize("rewrite", [_multiply, _copy, _zero_one])
def test_weights_written_through_data_are_seen(model: MeMViT, rewrite: Callable[[MeMViT], None]) -> None:
    clips = torch.randn(1, 3, 8, 64, 64)
    with torch.no_grad():
        before, memory = model(clips)
        rewrite(model)
        once = model(clips)[0], model(clips, memory)[0]
        model.eval()  # forgets what was kept
        anew = model(clips)[0], model(clips, memory)[0]
    assert not torch.equal(once[0], before)
    for one, other in zip(once, anew, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_recorded_stream_sees_them_too(model: MeMViT) -> None:
    recognizer, clip = OnlineRecognizer(model), torch.randn(3, 8, 64, 64)
    for i in range(3):
        before = recognizer.push_clip(clip, stream=i)
    _multiply(model)
    after = recognizer.push_clip(clip, stream="new")
    with torch.no_grad():
        wanted, _ = model.eval()(clip[None])
    assert after.logits[0] != pytest.approx(before.logits[0])
    assert after.logits[0] == pytest.approx(wanted[0].numpy(), abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_optimisers_are_noticed_though_the_model_ran_between_gradients_and_step(model: MeMViT, fused: bool) -> None:
    clips = torch.randn(1, 3, 8, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    model(clips)[0].logsumexp(-1).sum().backward()
    with torch.no_grad():
        model(clips)
        optimizer.step()
        once, _ = model(clips)
        anew, _ = model.eval()(clips)
    torch.testing.assert_close(once, anew, rtol=0, atol=0)


def test_functions_of_many_models_at_once_still_work(model: MeMViT) -> None:
    """`torch.func` puts tensors without memory of their own in the parameters' places."""
    clips = torch.randn(1, 3, 8, 64, 64)
    parameters = {name: torch.stack([p.detach(), 1.1 * p.detach()]) for name, p in model.named_parameters()}

    def logits(own: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(model, own, (clips,))[0]
        return result

    with torch.no_grad(), memvit.kernels.reference_kernels():
        both = torch.func.vmap(logits)(parameters)
        (first, second) = (logits({name: p[i] for name, p in parameters.items()}) for i in range(2))
    torch.testing.assert_close(both, torch.stack([first, second]), rtol=1e-4, atol=1e-5)
