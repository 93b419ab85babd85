"""The C++ kernels compute what the plain definitions say, at every level of instructions."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from memvit.kernels import attention, cpu, reference_kernels
from memvit.kernels.attention import AxisTable, KeyMask, RelativePositions, pack_table
from memvit.kernels.linear import MLP, Linear, mlp
from memvit.kernels.max_pooling import max_pool
from memvit.kernels.norm import add_layer_norm, layer_norm
from memvit.kernels.pooling import Pooling, pool_norm
from memvit.kernels.residual_mlp import residual_mlp
from tiny_models import small_model

Size3 = tuple[int, int, int]

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}

pytestmark = [pytest.mark.usefixtures("cpu_level"), pytest.mark.filterwarnings("error")]


@pytest.fixture(autouse=True)
def no_grad() -> object:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def check(
    run: Callable[[], Tensor | list[Tensor]], dtype: torch.dtype, exact: Callable[[], Tensor | list[Tensor]]
) -> None:
    """Compares with the definition, which is computed in float32."""
    found = run()
    with reference_kernels():
        wanted = exact()
    for a, b in zip(
        [found] if isinstance(found, Tensor) else found, [wanted] if isinstance(wanted, Tensor) else wanted, strict=True
    ):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def positions(grid: Size3, num_keys: int, head_dim: int, num_entries: Size3) -> RelativePositions:
    tables = []
    for axis in range(3):
        row = torch.arange(grid[axis], dtype=torch.int32).view([-1 if i == axis else 1 for i in range(3)]).expand(grid)
        table = torch.randn(grid[axis], num_entries[axis], head_dim) * 0.2
        entry = torch.randint(-1, num_entries[axis], (num_keys,), dtype=torch.int32)
        row = torch.cat([torch.tensor([-1], dtype=torch.int32), row.flatten()])
        tables.append(AxisTable(axis, table, entry, row, pack_table(table)))
    return RelativePositions(grid, 1, tuple(tables))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "num_past", "num_keys", "heads", "head_dim", "num_entries"),
    [
        ((2, 3, 5), 0, 17, 2, 32, (4, 3, 5)),
        ((2, 7, 7), 33, 50, 3, 96, (8, 11, 11)),
        ((1, 4, 9), 700, 393, 1, 96, (70, 7, 20)),  # several blocks of keys, tables wider than a vector
        ((4, 14, 14), 0, 1, 1, 16, (4, 7, 7)),
        ((2, 17, 17), 11, 478, 2, 128, (17, 16, 15)),
    ],
)
def test_attention_equals_its_definition(
    grid: Size3, num_past: int, num_keys: int, heads: int, head_dim: int, num_entries: Size3, dtype: torch.dtype
) -> None:
    num_queries = 1 + grid[0] * grid[1] * grid[2]

    def tokens(n: int) -> Tensor:  # (B, heads, N, head_dim) as the model has them: channels of heads side by side
        return torch.randn(2, n, heads * head_dim).to(dtype).unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v, past_k, past_v = (tokens(n) for n in (num_queries, num_keys, num_keys, num_past, num_past))
    where = positions(grid, num_past + num_keys, head_dim, num_entries)
    mask = torch.rand(2, num_past + num_keys) < 0.7
    mask[:, -1] = True

    def run(cast: Callable[[Tensor], Tensor], key_mask: KeyMask | None, residual_from: int | None) -> Tensor:
        past = {"past_k": cast(past_k), "past_v": cast(past_v)} if num_past else {}
        return attention(
            cast(q), cast(k), cast(v), **past, positions=where, key_mask=key_mask, residual_from=residual_from
        )

    for options in ((None, 1), (KeyMask(mask), None), (KeyMask(mask[:1]), 0)):
        check(partial(run, lambda t: t, *options), dtype, partial(run, Tensor.float, *options))


def test_a_masked_key_has_no_weight_at_all() -> None:
    q, k, v = (torch.randn(1, 2, 40, 32) for _ in range(3))
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[0, 7] = False
    changed = v.clone()
    changed[:, :, 7] = float("nan")
    first, second = (attention(q, k, values, key_mask=KeyMask(mask)) for values in (v, changed))
    assert torch.equal(first, second)


def test_large_logits_do_not_overflow() -> None:
    q, k, v = (torch.randn(1, 1, 600, 32) * scale for scale in (100, 100, 1))
    check(lambda: attention(q, k, v), torch.float32, lambda: attention(q, k, v))


def test_weights_that_are_hardly_any_are_zero_within_the_kernels_alone() -> None:
    """Processors are slow at numbers below 2^-126: kernels take them for zero, and leave other operators as they were."""
    q, k, v = torch.randn(1, 1, 600, 32) * 30, torch.randn(1, 1, 600, 32), torch.randn(1, 1, 600, 32) * 1e-30
    norm, layer, tiny = nn.LayerNorm(32), Linear(32, 32), torch.full((100_000,), 1e-40)
    check(lambda: attention(q, k, v) * 1e30, torch.float32, lambda: attention(q, k, v) * 1e30)
    layer_norm(q, norm), layer(q), mlp(q, layer, nn.GELU(), layer)
    pool_norm(torch.randn(1, 64, 32), (4, 4, 4), [make_pooling(32, (3, 3, 3), (1, 1, 1), False)], num_class=0)
    assert (tiny * 0.5 > 0).all()


def test_what_is_not_finite_stays_visible() -> None:
    q, k, v = (torch.randn(1, 1, 20, 32) for _ in range(3))
    q[0, 0, 3, 5] = float("nan")
    out = attention(q, k, v)
    assert torch.isnan(out[0, 0, 3]).all()
    assert torch.isfinite(out[0, 0, :3]).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FFF8000, 0x7F800001, 0x7FC00000])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_what_is_no_number_is_none_whatever_its_bits(which: str, bits: int) -> None:
    tensors = {name: torch.randn(1, 1, 40, 32) for name in "qkv"}
    tensors[which][0, 0, 3, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    out = attention(*tensors.values())
    assert torch.isnan(out[0, 0, 3 if which == "q" else slice(None), 5]).all()


def make_pooling(c: int, kernel: Size3, stride: Size3, causal: bool) -> Pooling:
    return Pooling(torch.randn(c, 1, *kernel) * 0.3, stride, torch.rand(c) + 0.5, torch.randn(c) * 0.1, 1e-6, causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_class", [0, 1])
@pytest.mark.parametrize(
    ("grid", "heads", "c", "poolings"),
    [
        ((3, 5, 11), 2, 16, [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 4, 4))]),
        ((8, 7, 7), 1, 96, [((7, 3, 3), (4, 2, 2))]),
        ((2, 9, 23), 3, 32, [((1, 3, 3), (1, 1, 1)), ((3, 5, 5), (1, 1, 1))]),
        ((1, 1, 1), 1, 112, [((3, 3, 3), (1, 1, 1))]),
    ],
)
def test_pooling_equals_its_definition(
    grid: Size3, heads: int, c: int, poolings: list[tuple[Size3, Size3]], num_class: int, dtype: torch.dtype
) -> None:
    x = torch.randn(2, num_class + grid[0] * grid[1] * grid[2], heads * c).to(dtype)
    for causal in (False, True):
        made = [make_pooling(c, kernel, stride, causal) for kernel, stride in poolings]
        check(
            lambda made=made: pool_norm(x, grid, made, num_class=num_class),
            dtype,
            lambda made=made: pool_norm(x.float(), grid, made, num_class=num_class),
        )


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_results_are_compressed_to_the_rows_in_front(stride: int, dtype: torch.dtype, autocast: bool) -> None:
    grid = (4, 9, 9)
    x = torch.randn(2, 1 + 4 * 9 * 9, 64).to(dtype)
    poolings = [make_pooling(32, (3, 3, 3), (1, s, s), False) for s in (1, 2, 2)]
    compress_k, compress_v = (make_pooling(64, (7, 3, 3), (4, stride, stride), False) for _ in range(2))

    def pool(x: Tensor, compressions: Sequence[Pooling | None]) -> list[Tensor]:
        return pool_norm(x, grid, poolings, num_class=1, compressions=compressions)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        check(
            lambda: pool(x, [None, compress_k, compress_v]),
            torch.bfloat16 if autocast else dtype,
            lambda: pool(x.float(), [None, compress_k, compress_v]),
        )
        _, alone, _ = pool(x, ())
        queries, joint, _ = pool(x, [None, compress_k, None])
    assert queries.shape[1] == 1 + 4 * 9 * 9
    side = 3 if stride == 2 else 5
    assert joint.shape[1] == (1 + 1 * side * side) + alone.shape[1]
    torch.testing.assert_close(joint[:, -alone.shape[1] :], alone, rtol=0, atol=0)


def test_results_of_several_grids_are_compressed_all_the_same() -> None:
    x = torch.randn(1, 1 + 4 * 6 * 6, 32)
    poolings = [make_pooling(32, (3, 3, 3), (1, s, s), False) for s in (1, 2)]
    compressions = [make_pooling(32, (3, 3, 3), (2, 2, 2), False) for _ in range(2)]
    found = pool_norm(x, (4, 6, 6), poolings, num_class=1, compressions=compressions)
    with reference_kernels():
        wanted = pool_norm(x, (4, 6, 6), poolings, num_class=1, compressions=compressions)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_class", [0, 1])
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 4, 4), (3, 1, 2)])
def test_max_pooling_equals_its_definition(stride: Size3, num_class: int, dtype: torch.dtype) -> None:
    t, h, w = (s + 1 if s > 1 else s for s in stride)
    x = torch.randn(2, num_class + 4 * 9 * 10, 48).to(dtype)
    x[0, num_class + 37, 5] = float("nan")
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = max_pool(x, (4, 9, 10), (t, h, w), stride, num_class=num_class)
            with reference_kernels():
                wanted = max_pool(x, (4, 9, 10), (t, h, w), stride, num_class=num_class)
        assert found.isnan().any()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_pooling_sees_changed_filters() -> None:
    x, pooling = torch.randn(1, 8, 16), make_pooling(16, (3, 3, 3), (1, 1, 1), False)
    before = pool_norm(x, (2, 2, 2), [pooling], num_class=0)[0]
    pooling.weight.mul_(-1)
    after = pool_norm(x, (2, 2, 2), [pooling], num_class=0)[0]
    assert not torch.allclose(before, after)
    check(lambda: after, torch.float32, lambda: pool_norm(x, (2, 2, 2), [pooling], num_class=0)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_of_a_sum_equals_its_definition(dtype: torch.dtype) -> None:
    norm = nn.LayerNorm(48, 1e-6)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, added = torch.randn(3, 70, 48) + 5, torch.randn(3, 70, 48)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        check(lambda: layer_norm(x, norm), dtype, lambda: norm(x))
        total, normed = add_layer_norm(x, added.to(dtype), norm)
    torch.testing.assert_close(total, x + added.to(dtype), rtol=0, atol=0)
    check(lambda: normed, dtype, lambda: norm(total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 50, 20_000])
def test_packed_layers_equal_plain_ones_and_follow_their_weights(dtype: torch.dtype, num_tokens: int) -> None:
    fc1, fc2, act = Linear(32, 256), Linear(256, 16, bias=False), nn.GELU()
    x = torch.randn(num_tokens, 32)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            check(lambda: fc1(x), dtype, lambda: nn.functional.linear(x, fc1.weight, fc1.bias))
            check(lambda: mlp(x, fc1, act, fc2), dtype, lambda: mlp(x, fc1, act, fc2))
        fc1.weight.mul_(2)
        fc2.load_state_dict({"weight": torch.randn(16, 256) * 0.1})


def test_packed_layers_follow_a_fused_optimiser() -> None:
    """Which changes weights behind the version counter's back."""
    model = small_model(embed_dim=16)
    clips = torch.randn(1, 3, 4, 32, 32)
    before = model(clips)[0]
    with torch.enable_grad():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        model(clips)[0].sum().backward()
        optimizer.step()
    after = model(clips)[0]
    with reference_kernels():
        wanted = model(clips)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, wanted, rtol=0, atol=2e-5)


def test_operations_are_counted() -> None:
    model = small_model(memory_length=4, embed_dim=16)
    _, memory = model(torch.randn(1, 3, 4, 32, 32))
    counts = []
    for is_plain in (False, True):
        with FlopCounterMode(display=False) as counter, reference_kernels() if is_plain else nullcontext():
            model(torch.randn(1, 3, 4, 32, 32), memory)
        counts.append(counter.get_total_flops())
    assert 0.75 < counts[0] / counts[1] < 1  # pooling and positions are left out, and the past is projected once


def test_the_kernels_leave_gradients_to_pytorch() -> None:
    q = torch.randn(1, 1, 5, 16, requires_grad=True)
    with torch.enable_grad():
        assert not cpu.can_run(q)
        assert attention(q, q, q).requires_grad
        assert Linear(16, 4)(torch.randn(2, 16)).requires_grad


def test_parameters_may_lie_anyhow() -> None:
    x = torch.randn(3, 40, 64)
    linear, norm = Linear(64, 32), nn.LayerNorm(64)
    expected = nn.functional.linear(x, linear.weight, linear.bias), norm(x)
    for module in (linear, norm):
        for name, parameter in module.named_parameters():
            apart = torch.zeros(*parameter.shape, 3)
            apart[..., 1] = parameter
            setattr(module, name, nn.Parameter(apart[..., 1]))
    torch.testing.assert_close(linear(x), expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(layer_norm(x, norm), expected[1], rtol=0, atol=1e-5)
    norm.weight = nn.Parameter(torch.full((1,), 2.0).expand(64))
    torch.testing.assert_close(layer_norm(x, norm), norm(x), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_an_error_and_nothing_is_read_beyond_its_end() -> None:
    x = torch.randn(4, 4096)
    with pytest.raises(RuntimeError, match=r"shapes|size"):
        Linear(32, 2048)(x)
    with pytest.raises(RuntimeError, match=r"shapes|size"):
        MLP(32, 64, 32, 0.0).eval()(x)
    with pytest.raises(RuntimeError, match="shape"):
        layer_norm(x, nn.LayerNorm(32))
    with pytest.raises(RuntimeError, match=r"shape|size"):
        residual_mlp(x, x, nn.LayerNorm(4096), MLP(32, 64, 32, 0.0).eval())


def test_norms_without_parameters_and_single_rows() -> None:
    x = torch.randn(5, 64)
    for norm in (nn.LayerNorm(64, bias=False), nn.LayerNorm(64, elementwise_affine=False)):
        torch.testing.assert_close(layer_norm(x, norm), norm(x))
    linear = Linear(64, 32)
    torch.testing.assert_close(linear(x[0]), linear(x)[0], rtol=0, atol=1e-5)
