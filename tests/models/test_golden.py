"""Our numbers are the authors' numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import memvit
from cpu_levels import cpu_level, emulated_kernels  # noqa: F401
from golden_cases import CASES, GOLDEN, GoldenCase
from memvit.kernels import cpu, reference_kernels
from memvit.models.slowfast import release_name


def test_all_seventeen_cases_are_here() -> None:
    assert len(CASES) == 17


@pytest.mark.parametrize("name", [name for name in CASES if name != "grad"])
def test_logits_agree_at_every_step(name: str) -> None:
    case = GoldenCase(name)
    model, memory = case.model(), None
    num_compared = 0
    with torch.inference_mode():
        for step in range(len(case.video_ids)):
            if memory is not None:
                memory = memory.forget(case.boundaries_at(step))
            logits, memory = model(case.clips(step), memory, case.boxes_at(step))
            heads = logits if isinstance(logits, tuple) else (logits,)
            for ours, theirs in zip(heads, case.expected_logits(step), strict=True):
                np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=5e-4 if name == "memvit_16x4" else 1e-4)
                num_compared += 1
    assert num_compared >= len(case.video_ids)


@pytest.mark.parametrize(
    "name", ["cls_all", "cls_gap", "no_compress", "det_wide", "memvit_16x4", "mvit_v1", "vit_plain"]
)
def test_logits_agree_without_kernels_for_this_processor(name: str) -> None:
    usual = cpu.status()
    cpu.use("off")
    try:
        assert not cpu.is_available()
        test_logits_agree_at_every_step(name)
    finally:
        cpu.use(usual if usual in cpu.LEVELS else "off")


@pytest.mark.parametrize("name", ["cls_all", "det_wide"])
@pytest.mark.usefixtures("cpu_level")
def test_logits_agree_with_the_kernels_for_every_processor(name: str) -> None:
    test_logits_agree_at_every_step(name)


def test_gradients_agree_for_every_parameter() -> None:
    case = GoldenCase("grad")
    model, memory = case.model(), None
    assert case.gradient_step is not None
    with torch.no_grad():
        for step in range(case.gradient_step):
            _, memory = model(case.clips(step), memory)
    logits, _ = model(case.clips(case.gradient_step), memory)
    loss = F.cross_entropy(logits, torch.tensor([case.gradient_step % logits.shape[1]]))
    loss.backward()
    assert loss.item() == pytest.approx(float(case.expected["loss"]), abs=1e-4)
    theirs = {n.removeprefix("grad/"): case.expected[n] for n in case.expected.files if n.startswith("grad/")}
    ours = {release_name(n): p.grad for n, p in model.named_parameters()}
    assert set(ours) == set(theirs)
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, gradient in ours.items():
        assert gradient is not None, name
        np.testing.assert_allclose(gradient.numpy(), theirs[name], rtol=0, atol=1e-4 * largest, err_msg=name)


@pytest.mark.parametrize("name", ["cls_all", "frame_causal", "det_wide", "zero_gap", "pool_avg"])
def test_plain_definitions_of_kernels_agree_too(name: str) -> None:
    case = GoldenCase(name)
    model, memory = case.model(), None
    with torch.inference_mode(), reference_kernels():
        for step in range(4):
            logits, memory = model(case.clips(step), memory, case.boxes_at(step))
            heads = logits if isinstance(logits, tuple) else (logits,)
            for ours, theirs in zip(heads, case.expected_logits(step), strict=True):
                np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["cls_all", "det_wide"])
def test_real_checkpoint_files_give_the_same_logits(name: str) -> None:
    case = GoldenCase(name)
    model = memvit.load_slowfast(GOLDEN / f"{name}.yaml", GOLDEN / f"{name}.pyth")
    logits, _ = model(case.clips(0), None, case.boxes_at(0))
    np.testing.assert_allclose(logits.detach().numpy(), case.expected_logits(0)[0], rtol=0, atol=1e-4)
