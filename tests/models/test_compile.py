"""A step with memory compiles to one graph, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import fx

from memvit import MeMViT, OnlineRecognizer
from memvit.online import ClipPrediction
from memvit.online.engine import StepEngine
from tiny_models import ONE_BLOCK, TWO_BLOCKS, small_model

Backend = Callable[[fx.GraphModule, object], Callable[..., object]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def graphs() -> list[fx.GraphModule]:
    """Those that were compiled, one a batch size."""
    return []


@pytest.fixture
def counting(graphs: list[fx.GraphModule]) -> Backend:
    def count(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    return count


def compiled_recognizer(model: MeMViT, backend: Backend | str, **options: object) -> OnlineRecognizer:
    """As `OnlineRecognizer(model, compile=True)`, compiled by that backend."""
    online = OnlineRecognizer(model, compile=True, **options)  # type: ignore[arg-type]
    online.engine.backend = backend
    return online


def clip(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def frames(seed: int, num: int = 20) -> list[tuple[np.ndarray, None]]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8), None) for _ in range(num)]


def check_alike(ours: list[ClipPrediction], theirs: list[ClipPrediction], tolerance: float = 1e-5) -> None:
    assert [(p.stream, p.clip, p.start_s) for p in ours] == [(p.stream, p.clip, p.start_s) for p in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for logits, expected in zip(one.logits, other.logits, strict=True):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("overrides", [{}, {"memory_gap": 2}, {"causal": True, "head_task": "frames"}])
@torch.no_grad()
def test_a_stream_needs_one_graph_and_no_recompilation(
    overrides: dict[str, object], graphs: list[fx.GraphModule], counting: Backend
) -> None:
    model = small_model(memory_layers=(1,), **TWO_BLOCKS, **overrides)
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    ours = theirs = model.new_memory(2)
    for step in range(6):
        clips = torch.randn(2, 3, 4, 32, 32)
        if step == 3:
            ours, theirs = ours.forget([True, False]), theirs.forget([True, False])
        compiled_logits, ours = compiled(clips, ours)
        eager_logits, theirs = model(clips, theirs)
        torch.testing.assert_close(compiled_logits, eager_logits, rtol=0, atol=1e-6)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"memory_gap": 2, "causal": True, "head_task": "frames", "num_classes": (2, 3)},
        {"memory_compression": "joint"},
    ],
    ids=str,
)
def test_streams_that_come_forget_and_go_compile_nothing_after_the_warm_up(
    overrides: dict[str, object], graphs: list[fx.GraphModule], counting: Backend
) -> None:
    model = small_model(**ONE_BLOCK, **overrides)
    ours = compiled_recognizer(model, counting, max_batch_size=4)
    theirs = OnlineRecognizer(model, max_batch_size=4)
    ours.warm_up()
    assert len(graphs) == 3  # for 1, 2 and 4 clips
    for step in range(8):
        if step == 3:
            ours.forget("a")
            theirs.forget("a")
        pushed = {"a": frames(step)}
        if step >= 2:
            pushed |= {name: frames(100 * i + step) for i, name in enumerate("bc", start=1)}
        check_alike(ours.push_many(pushed), theirs.push_many(pushed))
        if step == 5:
            check_alike(ours.finish("b"), theirs.finish("b"))
    check_alike(ours.finish(), theirs.finish())
    assert len(graphs) == 3


def test_the_first_clip_warms_up_if_nobody_did(graphs: list[fx.GraphModule], counting: Backend) -> None:
    model = small_model(**ONE_BLOCK)
    ours, theirs = compiled_recognizer(model, counting, max_batch_size=3), OnlineRecognizer(model)
    check_alike([ours.push_clip(clip(0))], [theirs.push_clip(clip(0))])
    assert len(graphs) == 3  # for 1, 2 and 3 clips
    check_alike([ours.push_clip(clip(i)) for i in range(1, 6)], [theirs.push_clip(clip(i)) for i in range(1, 6)])
    assert len(graphs) == 3


def test_models_do_not_use_up_each_others_room(graphs: list[fx.GraphModule], counting: Backend) -> None:
    """The compiler keeps few graphs of one function."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(1, 4):
            online = compiled_recognizer(small_model(**ONE_BLOCK), counting, max_batch_size=1)
            assert np.isfinite([online.push_clip(clip(seed)).logits[0] for seed in range(2)]).all()
            assert len(graphs) == number


def test_a_saved_stream_goes_on_compiled(counting: Backend) -> None:
    model = small_model(**ONE_BLOCK)
    saved, theirs = OnlineRecognizer(model), OnlineRecognizer(model)
    ours = compiled_recognizer(model, counting, max_batch_size=1)
    check_alike([saved.push_clip(clip(i)) for i in range(4)], [theirs.push_clip(clip(i)) for i in range(4)])
    ours.load_state_dict(saved.state_dict())
    with torch._dynamo.config.patch(error_on_recompile=False):  # what is not saved is worked out anew
        resumed = [ours.push_clip(clip(4))]
    resumed += [ours.push_clip(clip(i)) for i in range(5, 8)]
    check_alike(resumed, [theirs.push_clip(clip(i)) for i in range(4, 8)])


def test_low_precision_compiles_once_too(graphs: list[fx.GraphModule], counting: Backend) -> None:
    model = small_model(**ONE_BLOCK)
    options = {"dtype": torch.bfloat16, "max_batch_size": 1}
    ours, theirs = compiled_recognizer(model, counting, **options), OnlineRecognizer(model, **options)  # type: ignore[arg-type]
    check_alike([ours.push_clip(clip(i)) for i in range(5)], [theirs.push_clip(clip(i)) for i in range(5)], 0.1)
    assert len(graphs) == 1


def test_inductor_gives_what_eager_gives() -> None:
    model = small_model(**ONE_BLOCK)
    ours, theirs = OnlineRecognizer(model, compile=True, max_batch_size=1), OnlineRecognizer(model)
    check_alike([ours.push_clip(clip(i)) for i in range(6)], [theirs.push_clip(clip(i)) for i in range(6)])


def test_a_machine_without_a_compiler_is_told_so() -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        online = OnlineRecognizer(small_model(**ONE_BLOCK), compile=True, max_batch_size=1)
        with pytest.raises(ValueError, match=r"install g\+\+ .* or leave out compile"):
            online.warm_up()


def test_batches_are_filled_up_to_few_sizes() -> None:
    assert [StepEngine(small_model(), max_batch_size=n).batch_sizes for n in (1, 2, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]
