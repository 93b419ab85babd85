"""Memory is a value: it can be split, joined, saved, moved and forgotten, stream by stream."""

import numpy as np
import pytest
import torch
from torch import Tensor

from memvit import Memory, MeMViT
from tiny_models import small_config, small_model

TASKS = {
    "clip": {},
    "frames": {"head_task": "frames", "causal": True, "num_classes": (5, 3)},
    "boxes": {"head_task": "boxes", "head_box_depth": 2, "head_max_boxes": 6},
}


def clips_at(step: int, num_streams: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(num_streams, 3, 4, 32, 32, generator=generator).to(dtype)


def boxes_at(step: int, num_streams: int) -> list[Tensor]:
    """Between none and eight boxes a clip: more than the model's six at times."""
    generator = torch.Generator().manual_seed(100 + step)
    counts = [(3 * step + 2 * b) % 9 for b in range(num_streams)]
    corners = [torch.rand(n, 2, 2, generator=generator) * 31 for n in counts]
    return [torch.cat([c.amin(dim=1), c.amax(dim=1)], dim=1) for c in corners]


def as_tuple(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return logits if isinstance(logits, tuple) else (logits,)


def run_stream(
    model: MeMViT, stream: int, num_streams: int, new_video_at: set[int], num_steps: int
) -> list[tuple[Tensor, ...]]:
    """One stream by itself; `num_streams` only says which of the clips are its."""
    outputs, memory = [], None
    for step in range(num_steps):
        if memory is not None and step in new_video_at:
            memory = None
        boxes = [boxes_at(step, num_streams)[stream]] if model.config.head.task == "boxes" else None
        clip = clips_at(step, num_streams, model.norm.weight.dtype)[stream : stream + 1]
        logits, memory = model(clip, memory, boxes)
        outputs.append(as_tuple(logits))
    return outputs


@pytest.mark.parametrize(
    "selection", [{}, {"memory_gap": 2}, {"memory_compression": "joint"}, {"memory_compression": "none"}]
)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.inference_mode()
def test_a_batch_of_streams_gives_what_each_gives_alone(
    dtype: torch.dtype, task: str, selection: dict[str, object]
) -> None:
    """float64 shows that nothing leaks; float32, whose sums round differently in a batch, stays within 1e-5 of the
    largest logit."""
    model = small_model(**TASKS[task], **selection).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    boundaries = [{3}, {5, 6}, set()]
    memory = None
    alone = [run_stream(model, b, 3, boundaries[b], num_steps=9) for b in range(3)]
    for step in range(9):
        if memory is not None:
            memory = memory.forget(torch.tensor([step in boundaries[b] for b in range(3)]))
        boxes = boxes_at(step, 3) if task == "boxes" else None
        logits, memory = model(clips_at(step, 3, dtype), memory, boxes)
        for head, together in enumerate(as_tuple(logits)):
            separate = torch.cat([alone[b][step][head] for b in range(3)])
            largest = max(1.0, float(separate.abs().amax())) if separate.numel() else 1.0
            torch.testing.assert_close(together, separate, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_earlier_videos_change_nothing(task: str) -> None:
    model = small_model(**TASKS[task])

    def after_a_first_video(seed: int) -> list[Tensor]:
        memory, outputs = None, []
        for step in range(8):
            boxes = boxes_at(step if step >= 4 else step + seed, 2) if task == "boxes" else None
            if step == 4:
                assert memory is not None
                memory = memory.forget(torch.ones(2, dtype=torch.bool))
            logits, memory = model(clips_at(step if step >= 4 else step + seed, 2), memory, boxes)
            outputs += as_tuple(logits) if step >= 4 else ()
        return outputs

    for ours, theirs in zip(after_a_first_video(0), after_a_first_video(50), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_earlier_video_with_nan_features_leaves_no_trace() -> None:
    model = small_model()
    _, memory = model(torch.full((1, 3, 4, 32, 32), float("nan")))
    logits, _ = model(clips_at(1, 1), memory.forget([True]))
    assert torch.isfinite(logits).all()


def filled_memory(model: MeMViT, num_streams: int = 4) -> Memory:
    memory = None
    for step in range(3):
        boxes = boxes_at(step, num_streams) if model.config.head.task == "boxes" else None
        with torch.inference_mode():
            _, memory = model(clips_at(step, num_streams), memory, boxes)
    assert memory is not None
    return memory.forget(torch.tensor([True] + [False] * (num_streams - 1)))


def assert_same(a: Memory, b: Memory) -> None:
    assert a.clip_grid == b.clip_grid
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_splitting_and_joining_streams_is_lossless(task: str) -> None:
    memory = filled_memory(small_model(**TASKS[task]))
    assert len(memory) == memory.batch_size == 4
    assert memory[2:4].batch_size == 2
    assert memory[1].batch_size == 1
    assert_same(Memory.cat([memory[:1], memory[1:4]]), memory)
    assert_same(Memory.cat(list(memory)), memory)
    assert_same(memory[torch.tensor([3, 0])], Memory.cat([memory[-1], memory[0]]))
    assert_same(memory[[True, False, True, False]], memory[::2])
    assert_same(memory[(0, 3)], memory[[0, 3]])
    assert_same(memory[True, False, True, False], memory[::2])
    for one in (np.int64(3), torch.tensor(3)):
        assert_same(memory[one], memory[3])


def test_streams_with_more_boxes_join_those_with_few() -> None:
    model = small_model(**TASKS["boxes"]).double()
    few, many = torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([[1.0, 1, 9, 9]]).repeat(20, 1)
    clips = [clips_at(step, 2, torch.float64) for step in range(3)]
    _, a = model(clips[0][:1], None, [few])
    _, b = model(clips[1][:1], None, [many])
    assert (a.num_box_tokens, b.num_box_tokens) == (6, 20)
    joined, _ = model(clips[2], Memory.cat([a, b]), [few, few])
    alone = [model(clips[2][i : i + 1], m, [few])[0] for i, m in enumerate((a, b))]
    torch.testing.assert_close(joined, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("selection", [{}, {"memory_gap": 2}, {"memory_compression": "none"}])
@torch.inference_mode()
def test_features_of_a_clip_leave_box_memory_a_clip_without_boxes(selection: dict[str, object]) -> None:
    model = small_model(**TASKS["boxes"], **selection)
    clips = [clips_at(step, 1) for step in range(6)]
    box = [torch.tensor([[1.0, 1, 9, 9]])]
    a = b = None
    for step, clip in enumerate(clips):
        if step == 2:
            _, a = model.forward_features(clip, a)
            _, b = model(clip, b, box)
            b.box_counts[:, -1] = 0  # the same clip, but none of its box tokens exists
        else:
            ours, a = model(clip, a, box)
            theirs, b = model(clip, b, box)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_saved_memory_goes_on_as_if_nothing_had_happened(task: str, tmp_path: object) -> None:
    model = small_model(**TASKS[task])
    memory = filled_memory(model)
    restored = model.new_memory(4).load_state_dict(memory.state_dict())
    assert_same(restored, memory)
    memory.state_dict()["valid"].fill_(False)
    assert restored.valid.any(), "the restored memory must own its tensors"


def test_a_memory_of_another_shape_is_refused_and_changes_nothing() -> None:
    model = small_model()
    memory, before = model.new_memory(2), model.new_memory(2)
    with pytest.raises(ValueError, match="shape"):
        memory.load_state_dict(filled_memory(model, num_streams=3).state_dict())
    with pytest.raises(ValueError, match="another model"):
        memory.load_state_dict(small_model(memory_layers=(0,)).new_memory(2).state_dict())
    assert_same(memory, before)


SHORT_WITH_A_GAP = {"memory_length": 1, "memory_gap": 2}
OTHERS: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({}, {"num_heads": 2}, r"num_heads=\[2, 4, 4, 8\], not \[1, 2, 2, 4\]"),
    ({}, SHORT_WITH_A_GAP, "memory_length=1, not 2; memory_gap=2, not 1"),
    ({}, {"memory_compression": "joint"}, "memory_compression=joint, not pipelined"),
    ({"memory_length": 1}, {"memory_length": 1, "memory_compression": "joint"}, "memory_compression=joint"),
    ({}, {"memory_layers": (0, 2)}, r"memory_layers=\(0, 2\), not \(0, 1, 2, 3\)"),
    ({}, {"memory_length": 0}, "memory_length=0, not 2"),
    ({}, {"memory_kernel": (1, 3, 3)}, "memory_kernel"),
    ({}, {"memory_stride": (1, 2, 2)}, "memory_stride"),
    ({}, {"embed_dim": 16}, r"width=\[16, .*, not \[8, "),
    ({}, {"dim_mul": ((1, 2.0), (2, 2.0))}, "width"),
    ({"dim_mul": ((1, 2.0),)}, {"dim_mul": ((2, 2.0),), "widen_in_attention": False}, "attention_width"),
    ({}, {"class_token": False}, "class_token=False, not True"),
    ({}, {"kv_stride_adaptive": (1, 2, 2)}, "key_stride"),
    (TASKS["boxes"], {**TASKS["boxes"], "head_box_depth": 1}, "box_depth=1, not 2"),
]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(("own", "others", "difference"), OTHERS)
def test_a_memory_of_another_model_is_refused_and_told_apart(
    own: dict[str, object], others: dict[str, object], difference: str, mode: type
) -> None:
    model, other = MeMViT(small_config(**own)), MeMViT(small_config(**others))
    boxes = boxes_at(1, 2) if model.config.head.task == "boxes" else None
    with mode():
        memory = other.new_memory(2)
        with pytest.raises(
            ValueError, match=f"this memory is of another model: .*{difference}.*begin with memory=None"
        ):
            model(clips_at(0, 2), memory, boxes)
        with pytest.raises(ValueError, match="of another model"):
            model.forward_features(clips_at(0, 2), memory)
        with pytest.raises(ValueError, match=f"the saved memory is of another model: .*{difference}.*new_memory"):
            model.new_memory(2).load_state_dict(memory.state_dict())
        with pytest.raises(ValueError, match=f"memories of different models cannot be joined: .*{difference}"):
            Memory.cat([model.new_memory(2), memory])


def test_other_weights_heads_and_rates_take_each_others_memory() -> None:
    memory = filled_memory(small_model())
    alike = {"num_classes": (3, 2), "drop_path": 0.5, "mlp_ratio": 2.0, "memory_layers": (0, 1, 2, 3)}
    for other in (MeMViT(small_config(**alike)), small_model(memory_boundary="zero")):
        other(clips_at(3, 4), memory)
        other(clips_at(3, 4), other.new_memory(4).load_state_dict(memory.state_dict()))


def test_clips_turned_by_a_quarter_do_not_go_on_from_a_saved_memory() -> None:
    model = small_model()
    state = model.new_memory(1, height=48, width=32).state_dict()
    memory = model.new_memory(1, height=32, width=48)
    with pytest.raises(ValueError, match=r"token grid \(2, 12, 8\) \(time, height, width\), this one of \(2, 8, 12\)"):
        memory.load_state_dict(state)
    model.new_memory(1, height=48, width=32).load_state_dict(state)


def test_states_from_before_they_said_what_they_are_of_load() -> None:
    model = small_model()
    memory = filled_memory(model)
    old = {name: tensor for name, tensor in memory.state_dict().items() if name not in ("kind", "clip_grid")}
    restored = model.new_memory(4).load_state_dict(old)
    assert_same(restored, memory)
    with torch.no_grad():
        expected, _ = model(clips_at(4, 4), memory)
        torch.testing.assert_close(model(clips_at(4, 4), restored)[0], expected, rtol=0, atol=1e-5)
    joint = small_model(memory_compression="joint").new_memory(4).state_dict()
    with pytest.raises(ValueError, match="another memory_gap or memory_compression"):
        model(clips_at(4, 4), model.new_memory(4).load_state_dict({name: joint[name] for name in old}))


@pytest.mark.parametrize("memory", [{}, (), torch.zeros(1), [torch.zeros(1, 4)]])
def test_what_is_no_memory_is_refused(memory: object) -> None:
    with pytest.raises(ValueError, match=r"memory must be a memvit.Memory or None, not \w+; begin with memory=None"):
        small_model()(clips_at(0, 1), memory)  # type: ignore[arg-type]


def test_dtype_moves_keys_and_values_but_no_masks() -> None:
    memory = filled_memory(small_model()).to(torch.bfloat16)
    assert memory.dtype == torch.bfloat16
    assert memory.valid.dtype == torch.bool
    assert memory.to("cpu", torch.float64).dtype == torch.float64
    assert memory.to("meta").device.type == "meta"


def test_layers_without_memory_keep_none() -> None:
    model = small_model(memory_layers=(1, 3))
    assert set(model.new_memory(1).layers) == {1, 3}
    names = {name for name, _ in model.named_parameters()}
    assert not any(n.startswith(("blocks.0", "blocks.2")) and ("compress" in n or "rel_pos_mem" in n) for n in names)
    assert small_model(memory_length=0).new_memory(1).nbytes == 0


def test_memory_carries_no_graph_across_clips() -> None:
    model = small_model().train()
    _, memory = model(clips_at(0, 2))
    assert not any(t.requires_grad for t in memory.state_dict().values())


def test_forget_leaves_the_given_memory_as_it_was() -> None:
    memory = filled_memory(small_model())
    before = memory.clone()
    memory.forget([True, True, True, True])
    assert_same(memory, before)


@pytest.mark.parametrize("streams", [[True], torch.zeros(4), torch.zeros(2, 2, dtype=torch.bool)])
def test_forget_wants_one_bool_per_stream(streams: object) -> None:
    with pytest.raises(ValueError, match=r"one bool per stream, shape \(4,\)"):
        filled_memory(small_model()).forget(streams)  # type: ignore[arg-type]


def test_wrong_memories_are_refused_with_the_cure() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="memory of 4 streams with 2 clips"):
        model(clips_at(0, 2), filled_memory(model))
    with pytest.raises(ValueError, match="another model"):
        model(clips_at(0, 4), filled_memory(small_model(memory_length=3)))
    with pytest.raises(ValueError, match="one clip size per stream"):
        model(torch.randn(4, 3, 4, 32, 48), filled_memory(model))
    with pytest.raises(ValueError, match="cannot be joined"):
        Memory.cat([model.new_memory(1), model.new_memory(1, width=48)])
    with pytest.raises(ValueError, match="at least one"):
        Memory.cat([])
    with pytest.raises(IndexError):
        model.new_memory(2)[2]


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (1, 4, 4, 32, 32), (0, 3, 4, 32, 32), (1, 3, 4, 0, 32)])
def test_wrong_clip_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="clips"):
        small_model()(torch.zeros(shape))


def test_uint8_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="must be float"):
        small_model()(torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8))


def test_boxes_are_asked_for_and_checked() -> None:
    model = small_model(**TASKS["boxes"])
    with pytest.raises(ValueError, match="boxes="):
        model(clips_at(0, 1))
    with pytest.raises(ValueError, match="one \\(n_i, 4\\) tensor per clip"):
        model(clips_at(0, 2), None, [torch.zeros(1, 4)])
    with pytest.raises(ValueError, match="boxes of clip 0"):
        model(clips_at(0, 1), None, [torch.zeros(4)])
    with pytest.raises(ValueError, match=r"boxes of clip 0 must be a tensor \(n, 4\) .*, not list; torch.tensor"):
        model(clips_at(0, 1), None, [[[1.0, 1, 9, 9]]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="boxes of clip 1 must be finite"):
        model(clips_at(0, 2), None, [torch.zeros(1, 4), torch.tensor([[1.0, 1, 9, float("nan")]])])
    with pytest.raises(ValueError, match="takes no boxes"):
        small_model()(clips_at(0, 1), None, [torch.zeros(1, 4)])
    logits, _ = model(clips_at(0, 2), None, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert logits.shape == (0, 5)
