"""Kernels for GPUs where there is none: a process in which Triton interprets them, and what their tests compare by."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memvit.kernels import cpu, max_pooling, patches, triton_folding, triton_norm, triton_pooling
from memvit.kernels.triton_pooling import is_available

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not is_available(), reason="Triton is not installed: there are no kernels")


def _begin(is_interpreted: bool) -> None:
    torch.set_num_threads(1)
    if is_interpreted and is_available():
        from triton.runtime.interpreter import interpreter_builder

        # Half of its time went to looking for overflows, which need larger tensors than are interpreted.
        interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)


@contextmanager
def kernel_process(is_interpreted: bool = DEVICE == "cpu") -> Iterator[ProcessPoolExecutor]:
    """Where kernels run. Triton is interpreted in a whole process or not at all; in that of the tests it is not."""
    with pytest.MonkeyPatch.context() as patch:
        if is_interpreted:
            patch.setenv("TRITON_INTERPRET", "1")
        executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (is_interpreted,))
        executor.submit(int).result()  # it has begun, with this environment
    with executor:
        yield executor


@contextmanager
def models_take_them() -> Iterator[None]:
    """In such a process: models on CPUs run the kernels that they would run on a GPU, and none for CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_level", 0)
        patch.setattr(triton_pooling, "can_pool", lambda x, poolings: True)
        patch.setattr(triton_folding, "can_fold", lambda q, folding: True)
        patch.setattr(triton_folding, "folds_on", lambda device: True)
        patch.setattr(patches, "_is_on_gpu", lambda clips: True)
        patch.setattr(max_pooling, "_is_on_gpu", lambda x: True)

        def can_norm(x: Tensor, added: Tensor | None, norm: nn.Module) -> bool:
            return type(norm) is nn.LayerNorm and not torch.compiler.is_compiling()

        patch.setattr(triton_norm, "can_norm", can_norm)
        yield


def exactly(t: Tensor) -> Tensor:
    """The same numbers in float64, to start from."""
    return t.detach().double().requires_grad_()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert actual.shape == expected.shape
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def compile_one_graph(
    function: Callable[..., Any], backend: str = "aot_eager"
) -> tuple[Any, list[torch.fx.GraphModule]]:
    """The function compiled, which may not break its graph, and the list that its graphs get into."""
    graphs = []

    def compile_graph(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return torch.compile(function, backend=compile_graph, fullgraph=True), graphs
