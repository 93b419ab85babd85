"""A step with memory compiles to one graph, once."""

from collections.abc import Callable

import pytest
import torch
from torch import fx

from tiny_models import small_model


@pytest.mark.parametrize("overrides", [{}, {"memory_gap": 2}, {"causal": True, "head_task": "frames"}])
@torch.no_grad()
def test_a_stream_needs_one_graph_and_no_recompilation(overrides: dict[str, object]) -> None:
    graphs: list[fx.GraphModule] = []

    def count_graphs(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = small_model(memory_layers=(0, 2), **overrides)
    compiled = torch.compile(model, fullgraph=True, backend=count_graphs)
    ours = theirs = model.new_memory(2)
    for step in range(6):
        clips = torch.randn(2, 3, 4, 32, 32)
        if step == 3:
            ours, theirs = ours.forget([True, False]), theirs.forget([True, False])
        compiled_logits, ours = compiled(clips, ours)
        eager_logits, theirs = model(clips, theirs)
        torch.testing.assert_close(compiled_logits, eager_logits, rtol=0, atol=1e-6)
    assert len(graphs) == 1
