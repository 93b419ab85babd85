"""What runs on GPUs compiles to one graph, once, and gives what plain PyTorch gives: Triton's interpreter stands in for a GPU."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch

from interpreted import compile_one_graph, models_take_them, needs_triton
from memvit.kernels import triton_attention
from memvit.kernels.backend import reference_kernels
from tiny_models import ONE_BLOCK, small_model


class Outcome(NamedTuple):
    """Of steps with memory.

    Attributes:
        num_graphs: that were compiled.
        calls: of our operators in the first.
        compiled_error, eager_error: the largest, of logits.
    """

    num_graphs: int
    calls: Counter[str]
    compiled_error: float
    eager_error: float


def run_stream(overrides: dict[str, Any], num_steps: int, is_low_precision: bool) -> Outcome:
    """Steps, compiled, eager, and by the plain definitions. In the process where Triton is interpreted.

    Args:
        is_low_precision: attention as there, of float32 all the same.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = small_model(**ONE_BLOCK, **overrides)
    compiled, graphs = compile_one_graph(model, "eager")
    errors = [0.0, 0.0]
    with (
        torch.no_grad(),
        torch._dynamo.config.patch(error_on_recompile=True),
        models_take_them(),
        pytest.MonkeyPatch.context() as patch,
    ):
        if is_low_precision:
            patch.setattr(triton_attention, "can_attend", lambda q, sizes, num_class: True)
        memories = [model.new_memory(2, 4, 16, 16)] * 3
        for step in range(num_steps):
            clips = torch.randn(2, 3, 4, 16, 16)
            if step == 2:
                memories = [memory.forget([True, False]) for memory in memories]
            with reference_kernels():
                expected, memories[0] = model(clips, memories[0])
            for i, run in enumerate((compiled, model), start=1):
                logits, memories[i] = run(clips, memories[i])
                errors[i - 1] = max(errors[i - 1], (logits - expected).abs().max().item())
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    calls = Counter(name.split(".")[1] for name in targets if name.startswith("memvit."))
    return Outcome(len(graphs), calls, *errors)


def train() -> tuple[float, dict[str, float]]:
    """The errors of logits and of every parameter's gradient after two steps, relative to the largest value of each."""
    results = []
    for is_reference in (True, False):
        torch.manual_seed(0)
        model = small_model(**ONE_BLOCK).train()
        memory = None
        with reference_kernels() if is_reference else models_take_them():
            for _ in range(2):
                logits, memory = model(torch.randn(2, 3, 4, 16, 16), memory)
            (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_grads), (found, grads) = results
    assert grads.keys() == expected_grads.keys()
    # Biases of keys have gradients of zero but for rounding: softmax does not see what all keys have in common.
    scale = max(float(grad.abs().max()) for grad in expected_grads.values()) * 1e-3
    errors = {
        name: float((grad - expected_grads[name]).abs().max() / expected_grads[name].abs().max().clamp(min=scale))
        for name, grad in grads.items()
    }
    return float((found - expected).abs().max() / expected.abs().max()), errors


@needs_triton
@pytest.mark.parametrize(
    ("overrides", "num_steps", "attention"),
    [
        ({}, 3, {"fold_queries": 1, "fold_keys": 1}),
        ({}, 2, {"triton_attention": 1}),
        ({"causal": True, "head_task": "frames"}, 1, {}),
    ],
    ids=["clip", "clip in low precision", "causal frames"],
)
def test_a_stream_needs_one_graph_and_one_call_a_block(
    interpreting_process: ProcessPoolExecutor, overrides: dict[str, object], num_steps: int, attention: dict[str, int]
) -> None:
    outcome = interpreting_process.submit(run_stream, overrides, num_steps, "triton_attention" in attention).result()
    assert outcome.num_graphs == 1
    found = {name: num for name, num in outcome.calls.items() if name not in ("position_layout", "linear", "mlp")}
    assert found == {"gather_patches": 1, "triton_pool_norm": 1, "gpu_max_pool": 1} | attention
    assert outcome.compiled_error < 1e-5
    assert outcome.eager_error < 1e-5


@needs_triton
def test_training_computes_the_gradients_of_the_plain_definitions(interpreting_process: ProcessPoolExecutor) -> None:
    error, grad_errors = interpreting_process.submit(train).result()
    assert error < 1e-5
    assert len(grad_errors) > 20
    assert max(grad_errors.values()) < 1e-4, max(grad_errors, key=grad_errors.get)  # type: ignore[arg-type]
