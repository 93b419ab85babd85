"""The patch embedding by rows of patches: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from compiling import compiling, ignores_defaults
from torch import Tensor, nn

from interpreted import DEVICE, compile_one_graph, needs_triton, relative_error
from memvit.kernels import patches
from memvit.kernels.backend import reference_kernels
from memvit.kernels.patches import patch_embed

Size3 = tuple[int, int, int]


class Case(NamedTuple):
    """Random clips and filters, autocast to `dtype`."""

    size: Size3
    kernel: Size3
    stride: Size3
    padding: Size3
    channels: int = 3
    num_clips: int = 2
    dtype: torch.dtype = torch.float32
    clip_dtype: torch.dtype = torch.float32
    bias: bool = True

    def clips(self) -> Tensor:
        return torch.randn(self.num_clips, self.channels, *self.size).to(DEVICE, self.clip_dtype)

    def conv(self) -> nn.Conv3d:
        return nn.Conv3d(self.channels, 8, self.kernel, self.stride, self.padding, bias=self.bias).to(DEVICE)

    def autocast(self) -> Any:
        return torch.autocast(DEVICE, self.dtype, enabled=self.dtype != torch.float32)


SMALL = Case((2, 5, 6), (2, 3, 3), (1, 2, 2), (1, 1, 1))
MEMVIT = Case((4, 18, 21), (3, 7, 7), (2, 4, 4), (1, 3, 3))


@contextmanager
def kernels_run() -> Iterator[None]:
    """Clips pass for clips on a GPU, wherever they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "_is_on_gpu", lambda clips: True)
        yield


def parameters(conv: nn.Conv3d) -> list[Tensor]:
    return list(conv.parameters())


# What the other process runs


def errors(case: Case) -> tuple[float, float, float]:
    """The largest relative error of tokens in training and in inference, and of gradients, against float64."""
    torch.manual_seed(0)
    clips, conv = case.clips(), case.conv()
    with kernels_run(), case.autocast():
        out = patch_embed(clips, conv)
        with torch.no_grad():
            inferred = patch_embed(clips, conv)
    assert out.dtype == inferred.dtype == case.dtype
    assert out.is_contiguous()  # which a convolution's would not be
    assert inferred.is_contiguous()
    grad = torch.randn_like(out)
    actual = torch.autograd.grad(out, parameters(conv), grad)
    assert all(t.dtype == torch.float32 for t in actual)
    exact = [p.detach().to(case.dtype).double().requires_grad_() for p in parameters(conv)]
    weight, *bias = exact
    expected_out = F.conv3d(clips.double(), weight, bias[0] if bias else None, case.stride, case.padding)
    expected_out = expected_out.flatten(2).transpose(1, 2)
    expected = torch.autograd.grad(expected_out, exact, grad.double())
    return (
        relative_error(out, expected_out),
        relative_error(inferred, expected_out),
        max(map(relative_error, actual, expected)),
    )


def errors_behind_a_token(case: Case) -> tuple[float, bool, bool]:
    """The largest relative error of tokens, whether the one in front is as it was, and whether anything was joined."""
    torch.manual_seed(0)
    clips, conv = case.clips(), case.conv()
    front = nn.Parameter(torch.randn(1, 1, 8, device=DEVICE))
    with kernels_run(), case.autocast(), torch.no_grad(), patch.object(torch, "cat", wraps=torch.cat) as cat:
        out = patch_embed(clips, conv, front)
    assert out.dtype == case.dtype
    assert out.is_contiguous()
    weight, *bias = (p.detach().to(case.dtype).double() for p in conv.parameters())
    expected = F.conv3d(clips.double(), weight, bias[0] if bias else None, case.stride, case.padding)
    is_same = torch.equal(out[:, :1], front.to(case.dtype).expand(len(clips), -1, -1))
    return relative_error(out[:, 1:], expected.flatten(2).transpose(1, 2)), is_same, cat.called


def error_of_clips_of_other_strides() -> float:
    """Frames as a decoder gives them, channels last, every second one of a longer video."""
    conv = SMALL.conv()
    video = torch.randn(2, 4, 5, 6, 3, device=DEVICE)
    clips = video[:, ::2].permute(0, 4, 1, 2, 3)
    with kernels_run(), torch.no_grad():
        out = patch_embed(clips, conv)
        assert out.is_contiguous()
        return relative_error(out, conv.double()(clips.double()).flatten(2).transpose(1, 2))


def numbers_kept() -> tuple[int, int]:
    """How many numbers a training step keeps for its gradients, and how many a clip has."""
    clips, conv, kept = SMALL.clips(), SMALL.conv(), []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with kernels_run(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        patch_embed(clips, conv)
    return sum(kept), clips.numel()


def left_to_the_convolution() -> list[str]:
    """What is left to it, by name."""
    clips = SMALL.clips()
    learned = clips.clone().requires_grad_()
    layers = {
        "groups": nn.Conv3d(3, 6, 3, 2, 1, groups=3),
        "dilation": nn.Conv3d(3, 6, 2, padding=1, dilation=2),
        "padding by name": nn.Conv3d(3, 6, 3, padding="same"),
        "circular padding": nn.Conv3d(3, 6, 3, padding=1, padding_mode="circular"),
        "double": SMALL.conv().double(),
    }
    left = []
    with kernels_run():
        for name, layer in layers.items():
            layer.to(DEVICE)
            x = clips.to(layer.weight.dtype)
            out = patch_embed(x, layer)
            if not out.is_contiguous() and torch.equal(out, layer(x).flatten(2).transpose(1, 2)):
                left.append(name)
        conv = SMALL.conv()
        with reference_kernels():
            if not patch_embed(clips, conv).is_contiguous():
                left.append("reference")
        torch.autograd.grad(patch_embed(learned, conv).sum(), learned)
        left.append("gradient of clips")
        with pytest.raises(RuntimeError, match="type"):
            patch_embed(clips.half(), conv)
        left.append("error")
    return left


def packings() -> tuple[int, bool]:
    """How often filters were converted in three steps of inference, and whether the one after a change saw it."""
    clips, conv = SMALL.clips(), SMALL.conv()
    pack, packed = patches._pack, []

    def counted(*args: Any) -> Any:
        packed.append(args)
        return pack(*args)

    with kernels_run(), pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(patches, "_pack", counted)
        first, second = patch_embed(clips, conv), patch_embed(clips, conv)
        for p in parameters(conv):
            p.neg_()
        third = patch_embed(clips, conv)
        assert torch.equal(first, second)
        return len(packed), torch.equal(third, -first)


def gradients_of_some(weight: bool, bias: bool) -> list[bool]:
    conv = SMALL.conv()
    for p, learns in zip(parameters(conv), (weight, bias), strict=True):
        p.requires_grad_(learns)
    with kernels_run():
        patch_embed(SMALL.clips(), conv).sum().backward()
    return [p.grad is not None for p in parameters(conv)]


def compiled(case: Case) -> tuple[int, float, float, bool]:
    """Number of graphs of a training step and one of inference, errors of tokens and gradients, and whether rows are kept."""
    torch.manual_seed(0)
    clips, conv = case.clips(), case.conv()

    def function(clips: Tensor) -> Tensor:
        return patch_embed(clips * 2, conv) * 2

    run, graphs = compile_one_graph(function, "aot_eager_decomp_partition")
    with kernels_run(), case.autocast():
        actual, expected = run(clips), function(clips)
        with torch.no_grad():
            inferred = run(clips)
    saved: tuple[Tensor, ...] = actual.grad_fn.saved_tensors
    keeps_rows = any(t.numel() > clips.numel() for t in saved)
    grads = [torch.autograd.grad(out.float().square().sum(), parameters(conv)) for out in (actual, expected)]
    error = max(relative_error(actual, expected), relative_error(inferred, expected))
    return len(graphs), error, max(map(relative_error, *grads)), keeps_rows


def opchecks() -> set[str]:
    clips, window = SMALL.clips(), [list(size) for size in SMALL[1:4]]
    rows = torch.ops.memvit.gather_patches(clips, *window, torch.float16)
    assert rows.shape[2] % 8 == 0
    grad = torch.randn(*rows.shape[:2], 4, device=DEVICE)
    results = [
        torch.library.opcheck(torch.ops.memvit.gather_patches.default, (clips, *window, torch.float16)),
        torch.library.opcheck(torch.ops.memvit.patch_filters_grad.default, (grad, clips, *window)),
    ]
    return {status for result in results for status in result.values()}


CASES = {
    "memvit": MEMVIT,
    "no_two_sizes_alike": Case((3, 7, 10), (2, 3, 5), (1, 2, 3), (0, 1, 2), channels=2),
    "several_tiles_of_patches": Case((1, 2, 72), (1, 2, 2), (1, 2, 2), (0, 0, 0), channels=1),
    "kernel_wider_than_the_clip": Case((1, 2, 3), (3, 5, 5), (2, 2, 2), (1, 2, 2)),
    "padding_as_wide_as_the_kernel": Case((2, 3, 3), (1, 2, 2), (2, 1, 1), (1, 2, 2), bias=False),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tokens_and_gradients_are_those_of_the_convolution(process: ProcessPoolExecutor, case: Case) -> None:
    assert max(process.submit(errors, case).result()) < 2e-6


@needs_triton
@pytest.mark.parametrize("clip_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_decides_the_dtype(process: ProcessPoolExecutor, dtype: torch.dtype, clip_dtype: torch.dtype) -> None:
    case = MEMVIT._replace(dtype=dtype, clip_dtype=clip_dtype, num_clips=1)
    assert max(process.submit(errors, case).result()) < torch.finfo(dtype).eps


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("case", "has_room"),
    [
        (SMALL, True),
        (SMALL._replace(bias=False), True),
        (MEMVIT, True),
        (Case((2, 4, 4), (2, 2, 2), (2, 2, 2), (0, 0, 0)), False),
    ],
)
def test_tokens_come_behind_another_one(
    process: ProcessPoolExecutor, case: Case, has_room: bool, dtype: torch.dtype
) -> None:
    error, is_same, is_joined = process.submit(errors_behind_a_token, case._replace(dtype=dtype)).result()
    assert error < max(2e-6, torch.finfo(dtype).eps)
    assert is_same
    assert is_joined is not has_room


@needs_triton
def test_clips_are_read_where_they_lie(process: ProcessPoolExecutor) -> None:
    assert process.submit(error_of_clips_of_other_strides).result() < 2e-6


@needs_triton
def test_training_keeps_the_clips_and_not_their_patches(process: ProcessPoolExecutor) -> None:
    kept, clip = process.submit(numbers_kept).result()
    assert kept == clip


@needs_triton
def test_what_the_kernel_does_not_do_is_left_to_the_convolution(process: ProcessPoolExecutor) -> None:
    assert process.submit(left_to_the_convolution).result() == [
        "groups",
        "dilation",
        "padding by name",
        "circular padding",
        "double",
        "reference",
        "gradient of clips",
        "error",
    ]


@needs_triton
def test_filters_are_converted_once_until_they_change(process: ProcessPoolExecutor) -> None:
    assert process.submit(packings).result() == (2, True)


@needs_triton
@pytest.mark.parametrize(("weight", "bias"), [(True, False), (False, True)])
def test_a_frozen_parameter_gets_no_gradient(process: ProcessPoolExecutor, weight: bool, bias: bool) -> None:
    assert process.submit(gradients_of_some, weight, bias).result() == [weight, bias]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_keeps_one_graph_and_no_patches(process: ProcessPoolExecutor, dtype: torch.dtype) -> None:
    num_graphs, error, grad_error, keeps_rows = process.submit(compiled, SMALL._replace(dtype=dtype)).result()
    assert num_graphs == 2  # one each, with gradients and without
    assert error == 0
    assert grad_error < 1e-6
    assert not keeps_rows


@needs_triton
def test_the_operators_are_registered_soundly(process: ProcessPoolExecutor) -> None:
    assert process.submit(opchecks).result() == {"SUCCESS"}


@needs_triton
@ignores_defaults
@pytest.mark.parametrize("is_behind", [False, True], ids=["", "behind another"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_registers(
    dtype: torch.dtype, is_behind: bool
) -> None:
    from memvit.kernels import triton_patches

    clips = torch.empty(1, 3, 16, 224, 224)
    with compiling(triton_patches) as compiled:
        triton_patches.gather(clips, (3, 7, 7), (2, 4, 4), (1, 3, 3), dtype, is_behind=is_behind)
    (kernel,) = compiled
    assert "st.global.v4.b32" in kernel.ptx  # 16 bytes a thread
    assert kernel.spilled_bytes == 0


def test_clips_on_a_cpu_are_left_to_the_convolution() -> None:
    conv, clips = nn.Conv3d(3, 8, 3), torch.randn(1, 3, 4, 5, 6)
    assert torch.equal(patch_embed(clips, conv), conv(clips).flatten(2).transpose(1, 2))
