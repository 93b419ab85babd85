"""The C++ kernels for CPUs, if they were built: loading them, and calling them with tensors.

The library (csrc/) is plain C++ without PyTorch's headers, so it is built without PyTorch and serves every version of it. It
is called through ctypes and runs on PyTorch's own threads, which it gets as a function of PyTorch's stable C interface. What
instructions it uses is decided here, when it is loaded; the environment variable MEMVIT_CPU_KERNELS chooses less: "off",
"avx2", "avx512", "avx512_bf16", "amx".
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from ctypes import POINTER, Array, Structure, byref, c_float, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEVELS = ("off", "avx2", "avx512", "avx512_bf16", "amx")
DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Tokens(Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


class _Term(Structure):
    _fields_ = [("table", c_void_p), ("row", c_void_p), ("entry", c_void_p), ("rows", c_int64), ("entries", c_int64)]


class _AttentionCall(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "num_queries", "num_keys", "head_dim")),
        ("num_past_keys", c_int64),
        ("num_unrefined", c_int64),
        ("q", _Tokens),
        ("k", _Tokens * 2),
        ("v", _Tokens * 2),
        ("out", _Tokens),
        ("key_mask", c_void_p),
        ("mask_batch_stride", c_int64),
        ("terms", _Term * 3),
        ("num_terms", c_int64),
        ("scale", c_float),
        ("adds_query", c_int32),
        ("dtype", c_int32),
        ("parts", c_int32),
    ]


class _Volume(Structure):
    _fields_ = [("x", _Tokens), ("grid", c_int64 * 3)]


class _Pooling(Structure):
    _fields_ = [
        ("source", c_int64),
        ("head_channels", c_int64),
        *((name, c_void_p) for name in ("weight", "norm_weight", "norm_bias", "out")),
        ("out_stride", c_int64),
        *((name, c_int64 * 3) for name in ("kernel", "stride", "padding", "out_grid")),
        ("eps", c_float),
        ("reserved", c_int32),
    ]


class _PoolCall(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "channels", "num_class")),
        ("volumes", POINTER(_Volume)),
        ("num_volumes", c_int64),
        ("poolings", POINTER(_Pooling)),
        ("num_poolings", c_int64),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
    ]


class _MaxPoolCall(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "channels", "num_class")),
        ("volume", _Volume),
        *((name, c_int64 * 3) for name in ("kernel", "stride", "padding", "out_grid")),
        ("out", c_void_p),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
    ]


class _NormCall(Structure):
    _fields_ = [
        ("rows", c_int64),
        ("channels", c_int64),
        *((name, c_void_p) for name in ("x", "added", "sum", "weight", "bias", "out")),
        ("eps", c_float),
        *((name, c_int32) for name in ("dtype", "added_dtype", "out_dtype")),
    ]


class _CopyCall(Structure):
    _fields_ = [
        ("size", c_int64 * 4),
        ("from_stride", c_int64 * 3),
        ("to_stride", c_int64 * 3),
        ("source", c_void_p),
        ("target", c_void_p),
        ("from_width", c_int32),
        ("to_width", c_int32),
        ("adds", c_int32),
    ]


class Library(NamedTuple):
    """The C++ library, and the loop of PyTorch's that it runs in."""

    handle: ctypes.CDLL
    parallel_for: c_void_p


def load(path: Path) -> Library | str:
    """The library at this path, or why it cannot be loaded."""
    try:
        handle = ctypes.CDLL(str(path))
        handle.memvit_run_program.restype = c_int64
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return Library(handle, ctypes.cast(torch_library.torch_parallel_for, c_void_p))
    except (OSError, AttributeError) as error:
        return f"could not be loaded: {error}"


def _load_built() -> Library | str:
    """The library that the installation built, or why there is none."""
    folder = Path(__file__).parent
    path = next((folder / f"_cpu{end}" for end in EXTENSION_SUFFIXES if (folder / f"_cpu{end}").is_file()), None)
    if path is None:
        return "not built: the installation found no C++ compiler for them, or they do not exist for this kind of processor"
    return load(path)


def use(wanted: str) -> None:
    """Takes no better instructions than these, one of `LEVELS`; "off": PyTorch's operators alone. For this whole process.

    Raises:
        ValueError: there is no such level.
    """
    global _level, _status
    if wanted not in LEVELS:
        raise ValueError(f"MEMVIT_CPU_KERNELS={wanted!r}: choose one of {', '.join(LEVELS)}")
    if isinstance(_loaded, str):
        _level, _status = 0, _loaded
        return
    best = _loaded.handle.memvit_best_level()
    _level = min(best, LEVELS.index(wanted))
    _status = LEVELS[_level] if _level else "turned off" if best else "this processor has no AVX2 instructions"


_loaded = _load_built()
_level, _status = 0, ""
use(os.environ.get("MEMVIT_CPU_KERNELS", LEVELS[-1]))


def status() -> str:
    """Which instructions the kernels use ("avx512_bf16"), or why there are none."""
    return _status


def best_level() -> int:
    """Which of `LEVELS` the kernels use; 0 where there are none."""
    return _level


def is_available() -> bool:
    """Whether there are kernels for this CPU."""
    return _level > 0


def can_run(*tensors: Tensor | None) -> bool:
    """Whether the kernels can take these tensors: on the CPU, float32 or bfloat16, with no gradients wanted."""
    if not is_available():
        return False
    given = [t for t in tensors if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return False
    return all(t.device.type == "cpu" and t.dtype in DTYPES for t in given)


def lanes() -> int:
    """Floats in a vector: channels of a head come in multiples of it."""
    return 8 if _level == 1 else 16


def has_bfloat16() -> bool:
    """Whether attention multiplies pairs of bfloat16."""
    return _level >= LEVELS.index("avx512_bf16")


def has_tiles() -> bool:
    """Whether attention, linear layers and patches run on AMX's tiles."""
    return _level >= LEVELS.index("amx")


def has_products() -> bool:
    """Whether there are kernels for linear layers and patches."""
    return _level in _LEVELS_WITH_PRODUCTS


# Between them PyTorch's are as fast.
_LEVELS_WITH_PRODUCTS = (LEVELS.index("avx2"), LEVELS.index("amx"))

_PARTS = {"tf32": 2, "bf16": 1}  # everything else asks for float32


def num_parts(dtype: torch.dtype) -> int:
    """Bfloat16 numbers whose sum a factor is taken for on tiles, in products computed in this dtype.

    In float32 it depends on what PyTorch is told (`torch.set_float32_matmul_precision`).
    """
    if dtype != torch.float32:
        return 1
    return _PARTS.get(torch.backends.mkldnn.matmul.fp32_precision, 3)  # type: ignore[attr-defined]


# Told of every kernel's call, while a step is recorded (`recording`).
noting: ContextVar[Callable[[str, Structure], None] | None] = ContextVar("memvit_noting", default=None)


def run(name: str, call: Structure) -> None:
    """Runs a kernel on PyTorch's threads with the instructions chosen."""
    assert isinstance(_loaded, Library)
    note = noting.get()
    if note is not None:
        note(name, call)
    result = getattr(_loaded.handle, f"memvit_{name}")(byref(call), _level, _loaded.parallel_for)
    assert result == 0, f"the CPU kernel {name} does not take these shapes"


def run_program(program: Structure, bases: Any) -> None:
    """Runs kernels one after the other, see `program`."""
    assert isinstance(_loaded, Library)
    failed = _loaded.handle.memvit_run_program(byref(program), bases, _level, _loaded.parallel_for)
    assert failed == -1, f"kernel {failed} of a recorded step does not take its shapes"


def open_windows(windows: Array[Any], bases: Any, room: Tensor, position: int, is_new: bool) -> None:
    """Says where in a room the slots lie that a recorded step returns, see `rooms`."""
    assert isinstance(_loaded, Library)
    start = c_void_p(room.data_ptr())
    _loaded.handle.memvit_open_windows(windows, c_int64(len(windows)), bases, start, c_int64(position), int(is_new))


def _tokens(t: Tensor) -> _Tokens:
    """Of (B, heads, N, head_dim) or (B, N, C)."""
    assert t.stride(-1) == 1
    return _Tokens(t.data_ptr(), t.stride(0), t.stride(-2), t.stride(1) if t.dim() == 4 else 0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    tables: Sequence[Tensor],
    rows: Sequence[Tensor],
    entries: Sequence[Tensor],
    key_mask: Tensor | None,
    scale: float,
    residual_from: int,
) -> Tensor:
    """See `memvit.kernels.attention`; tables are packed for q, `residual_from` is -1 for none."""
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    B, heads, num_queries, head_dim = q.shape
    out = q.new_empty(B, num_queries, heads, head_dim).transpose(1, 2)
    num_past = 0 if past_k is None else past_k.shape[2]
    call = _AttentionCall(
        B, heads, num_queries, num_past + k.shape[2], head_dim, num_past, max(residual_from, 0), _tokens(q)
    )
    for i, (part_k, part_v) in enumerate(((past_k, past_v), (k, v))):
        if part_k is not None and part_v is not None:
            call.k[i], call.v[i] = _tokens(part_k), _tokens(part_v)
    call.out = _tokens(out)
    if key_mask is not None:
        key_mask = key_mask.contiguous()
        call.key_mask, call.mask_batch_stride = key_mask.data_ptr(), key_mask.shape[1] if len(key_mask) > 1 else 0
    for i, (table, row, entry) in enumerate(zip(tables, rows, entries, strict=True)):
        num_entries = 16 * table.shape[1] if has_tiles() else table.shape[2]
        call.terms[i] = _Term(table.data_ptr(), row.data_ptr(), entry.data_ptr(), table.shape[0], num_entries)
    call.num_terms, call.scale = len(tables), scale
    call.adds_query, call.dtype, call.parts = residual_from >= 0, DTYPES[q.dtype], num_parts(q.dtype)
    run("attention", call)
    return out


_SIZES = 14  # numbers in `sizes` for each pooling


def pooled_tokens(sizes: Sequence[int], num_class: int) -> list[int]:
    """Tokens in each result of `pool_norm`."""
    tokens = [0] * (max(sizes[1::_SIZES]) + 1)
    for i in range(0, len(sizes), _SIZES):
        t, h, w = sizes[i + 11 : i + 14]
        tokens[sizes[i + 1]] += num_class + t * h * w
    return tokens


def pool_norm(
    x: Tensor,
    grid: Sequence[int],
    weights: Sequence[Tensor],
    norms: Sequence[Tensor],
    sizes: Sequence[int],
    eps: Sequence[float],
    num_class: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """See `memvit.kernels.pooling`.

    Args:
        weights: of each pooling, packed (taps, c).
        norms: weight and bias of each.
        sizes: of each, what it pools (0: `x`; n: the nth of the results that are pooled once more); which result it goes to, in
            front of what it pools; and three numbers each of kernel, stride, padding, output grid. Those of `x` come first.
        eps: of each.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    B, _, C = x.shape
    outs = [x.new_empty(B, n, C, dtype=dtype) for n in pooled_tokens(sizes, num_class)]
    num_volumes = 1 + max(sizes[::_SIZES])
    volumes, poolings = (_Volume * num_volumes)(), (_Pooling * len(weights))()
    volumes[0].x, volumes[0].grid[:] = _tokens(x), grid
    pooled: dict[int, tuple[Tensor, Sequence[int]]] = {}
    for i, weight in enumerate(weights):
        source, target, *own = sizes[_SIZES * i : _SIZES * (i + 1)]
        out, num_rows = outs[target], num_class + math.prod(own[9:])
        if source:
            volumes[source].x, volumes[source].grid[:] = _tokens(pooled[target][0]), pooled[target][1]
            out = out[:, :num_rows]
        else:
            out = out[:, out.shape[1] - num_rows :]
            pooled[target] = out, own[9:]
        pooling = poolings[i]
        pooling.source, pooling.head_channels, pooling.weight = source, weight.shape[1], weight.data_ptr()
        pooling.norm_weight, pooling.norm_bias = norms[2 * i].data_ptr(), norms[2 * i + 1].data_ptr()
        pooling.out, pooling.out_stride, pooling.eps = out.data_ptr(), out.stride(0), eps[i]
        pooling.kernel[:], pooling.stride[:] = own[:3], own[3:6]
        pooling.padding[:], pooling.out_grid[:] = own[6:9], own[9:]
    call = _PoolCall(B, C, num_class, volumes, num_volumes, poolings, len(weights), DTYPES[x.dtype], DTYPES[dtype])
    run("pool_norm", call)
    return outs


def max_pool(
    x: Tensor,
    grid: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    out_grid: Sequence[int],
    num_class: int,
    dtype: torch.dtype,
) -> Tensor:
    """See `memvit.kernels.max_pooling`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    B, _, C = x.shape
    out = x.new_empty(B, num_class + math.prod(out_grid), C, dtype=dtype)
    call = _MaxPoolCall(B, C, num_class, _Volume(_tokens(x)))
    call.volume.grid[:], call.out_grid[:] = grid, out_grid
    call.kernel[:], call.stride[:], call.padding[:] = kernel, stride, padding
    call.out, call.dtype, call.out_dtype = out.data_ptr(), DTYPES[x.dtype], DTYPES[dtype]
    run("max_pool", call)
    return out


def layer_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + added (nothing where nothing is added), and its LayerNorm in `dtype`; (..., C), weight and bias float32."""
    x = x.contiguous()
    added = None if added is None else added.contiguous()
    total = x.new_empty(0) if added is None else torch.empty_like(x)
    out = torch.empty_like(x, dtype=dtype)
    call = _NormCall(
        x.numel() // x.shape[-1],
        x.shape[-1],
        x.data_ptr(),
        None if added is None else added.data_ptr(),
        total.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        eps,
        DTYPES[x.dtype],
        DTYPES[x.dtype if added is None else added.dtype],
        DTYPES[dtype],
    )
    run("layer_norm", call)
    return total, out


def copy_call(source: Tensor, target: Tensor, *, adds: bool = False) -> Structure | None:
    """What the kernel that copies takes, a part of a recorded step; None: too many axes.

    Args:
        source, target: of one shape; of one dtype, or float32 and bfloat16.
        adds: to what is there; of float32 or bfloat16.
    """
    axes: list[tuple[int, int, int]] = []  # size, and both strides
    for n, own, other in zip(source.shape, source.stride(), target.stride(), strict=True):
        if n == 1:
            continue
        if axes and axes[-1][1:] == (n * own, n * other):
            axes[-1] = axes[-1][0] * n, own, other
        else:
            axes.append((n, own, other))
    if not axes or axes[-1][1:] != (1, 1):
        axes.append((1, 1, 1))
    axes = [(1, 0, 0)] * (4 - len(axes)) + axes
    if len(axes) > 4:
        return None
    call = _CopyCall(source=source.data_ptr(), target=target.data_ptr())
    call.size[:] = [n for n, _, _ in axes]
    call.from_stride[:], call.to_stride[:] = [own for _, own, _ in axes[:-1]], [other for _, _, other in axes[:-1]]
    call.from_width, call.to_width, call.adds = source.element_size(), target.element_size(), adds
    return call
