"""What runs on GPUs compiles to one graph, once, and gives what plain PyTorch gives: Triton's interpreter stands in for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch

from interpreted import compile_one_graph, kernel_process, needs_triton
from memvit.kernels import triton_pooling
from memvit.kernels.backend import reference_kernels
from tiny_models import small_model


class Outcome(NamedTuple):
    """Of steps with memory.

    Attributes:
        num_graphs: that were compiled.
        num_poolings: calls of the operator in the first.
        compiled_error, eager_error: the largest, of logits.
    """

    num_graphs: int
    num_poolings: int
    compiled_error: float
    eager_error: float


def run_stream(overrides: dict[str, Any]) -> Outcome:
    """Four steps, compiled, eager, and by the plain definitions. In the process where Triton is interpreted."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = small_model(depth=1, dim_mul=(), head_mul=(), q_strides=((0, 1, 2, 2),), **overrides)
    compiled, graphs = compile_one_graph(model, "eager")
    errors = [0.0, 0.0]
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_pooling, "can_pool", lambda x, poolings: True)
        memories = [model.new_memory(2)] * 3
        for step in range(4):
            clips = torch.randn(2, 3, 4, 32, 32)
            if step == 2:
                memories = [memory.forget([True, False]) for memory in memories]
            with reference_kernels():
                expected, memories[0] = model(clips, memories[0])
            for i, run in enumerate((compiled, model), start=1):
                logits, memories[i] = run(clips, memories[i])
                errors[i - 1] = max(errors[i - 1], (logits - expected).abs().max().item())
    calls = [node for node in graphs[0].graph.nodes if node.target is torch.ops.memvit.triton_pool_norm.default]
    return Outcome(len(graphs), len(calls), *errors)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """Where kernels run: those for CPUs are off there, so that those for GPUs get to run."""
    with kernel_process(TRITON_INTERPRET="1", MEMVIT_CPU_KERNELS="off") as executor:
        yield executor


@needs_triton
@pytest.mark.parametrize("overrides", [{}, {"causal": True, "head_task": "frames"}], ids=["clip", "causal frames"])
def test_a_stream_needs_one_graph_and_one_call_a_block(
    process: ProcessPoolExecutor, overrides: dict[str, object]
) -> None:
    outcome = process.submit(run_stream, overrides).result()
    assert outcome.num_graphs == 1
    assert outcome.num_poolings == 1
    assert outcome.compiled_error < 1e-5
    assert outcome.eager_error < 1e-5
