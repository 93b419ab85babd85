"""Which kernels are active here, in words."""

from __future__ import annotations

from memvit.kernels import cpu, linear, triton_pooling


def status() -> dict[str, str]:
    """What computes each part of the model: {part: implementation}.

    On CPUs without gradients, that is: there training runs on PyTorch's operators.
    """
    in_cpp = f"C++, {cpu.status()}" if cpu.is_available() else f"PyTorch ({cpu.status()})"
    packed = "oneDNN, packed weights" if linear.is_available() else "PyTorch"
    return {
        "attention, pooling and norms on CPUs": in_cpp,
        "linear layers on CPUs": in_cpp if cpu.has_products() else packed,
        "attention, pooling, norms, patches on GPUs": triton_pooling.status(),
    }
