"""Who is timed at what: a model with and without memory and torchvision's, in evaluation and in training.

Run as a module, measures the memory that one step needs in a process of its own; `speed` does so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import mvit_v2_s

from memvit.benchmarks.peak_memory import PeakMemory, resident_bytes
from memvit.benchmarks.roofline import Work, count_work
from memvit.benchmarks.timing import Step, synchronize
from memvit.kernels import cpu
from memvit.kernels.program import Workspace
from memvit.models.config import MViTConfig
from memvit.models.heads import Logits
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.recorded_on_cpu import RecordedOnCpu
from memvit.online.recorded_step import RecordedStep
from memvit.training.recorded import RecordedNetwork

Task = Literal["forward", "training"]
Contender = Literal["memory", "no memory", "mvit_v2_s"]
Form = Literal["eager", "compiled", "recorded"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

REFERENCE_SIZE = (16, 224, 224)  # the only clips that mvit_v2_s takes: frames, height, width
LEARNING_RATE = 1e-4
NUM_MEASURED_STEPS = 2  # the second training step also has the optimizer's averages


@dataclass(frozen=True)
class Case:
    """One contender at one task.

    Attributes:
        task: a forward pass in inference mode, or a training step: forward, cross entropy, backward, AdamW.
        contender: our model as a stream with full memory, the same without memory, or torchvision's mvit_v2_s.
        form: as it is, through `torch.compile`, or, of our model, recorded as `OnlineRecognizer` does.
        dtype: "float32", or autocast in this format.
        batch_size: clips in a step.
    """

    task: Task
    contender: Contender
    form: Form
    dtype: str
    batch_size: int


def check_config(config: MViTConfig) -> None:
    """Raises ValueError for a model that cannot be timed on clips alone."""
    if config.head.task == "boxes":
        raise ValueError(
            "this model classifies boxes, and what it takes depends on how many there are: time its trunk by the preset "
            "without _ava in its name"
        )


def clip_size(config: MViTConfig, contender: Contender) -> tuple[int, int, int]:
    """Frames, height and width of the clips that a contender gets."""
    return REFERENCE_SIZE if contender == "mvit_v2_s" else (config.num_frames, config.crop_size, config.crop_size)


def build_model(config: MViTConfig, contender: Contender) -> nn.Module:
    """A contender with random weights, which make no difference to its speed."""
    if contender == "mvit_v2_s":
        return mvit_v2_s()
    return MeMViT(config if contender == "memory" else config.replace(memory_length=0))


class Stream:
    """A model as a function of clips alone: what it remembers is carried on from call to call.

    Args:
        model: ours or torchvision's.
        compile_mode: of `torch.compile`; None: as it is.
    """

    def __init__(self, model: nn.Module, compile_mode: CompileMode | None = None) -> None:
        self.model = model
        self.call: Callable[..., Any] = model if compile_mode is None else torch.compile(model, mode=compile_mode)
        # CUDA graphs write every result into the same place; a memory that goes in again has to be copied out of it.
        self.copies_memory = compile_mode in ("reduce-overhead", "max-autotune")
        self.memory: Memory | None = None

    def fill_memory(self, clips: Tensor) -> None:
        """Remembers as many clips as there is room for: what a clip in the middle of a long video meets."""
        if isinstance(self.model, MeMViT):
            for _ in range(self.model.config.memory.num_slots + 1):
                _, self.memory = self.model(clips, self.memory)
            if self.call is not self.model:
                self.memory = _as_compiled(self.memory)

    def __call__(self, clips: Tensor) -> list[Tensor]:
        """Logits of every head."""
        if not isinstance(self.model, MeMViT):
            return [self.call(clips)]
        if self.copies_memory:
            torch.compiler.cudagraph_mark_step_begin()
        logits, self.memory = self.call(clips, self.memory)
        if self.copies_memory:
            self.memory = self.memory.clone()
        return list(logits) if isinstance(logits, tuple) else [logits]


def _as_compiled(memory: Memory | None) -> Memory | None:
    """A memory as a compiled step returns it: one that differs, in strides too, would have the step compiled twice."""
    if memory is None:
        return None
    memory = memory.with_tensors([tensor.contiguous().clone() for tensor in memory.tensors()])
    layers = {
        index: layer
        if layer.projected is None
        else dataclasses.replace(layer, projected=dataclasses.replace(layer.projected, stamp=None))
        for index, layer in memory.layers.items()
    }
    return dataclasses.replace(memory, layers=layers)


def make_step(
    case: Case, config: MViTConfig, device: torch.device, compile_mode: CompileMode = "default", fill: bool = True
) -> Step:
    """Builds a contender and what is timed of it.

    Args:
        case: the contender and its task.
        config: our model.
        device: where it runs.
        compile_mode: of `torch.compile`, where the case is of the compiled form.
        fill: begin with a full memory.
    """
    model = build_model(config, case.contender).to(device).train(case.task == "training")
    clips = torch.randn(case.batch_size, config.in_channels, *clip_size(config, case.contender), device=device)
    stream = Stream(model, compile_mode if case.form == "compiled" else None)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, getattr(torch, case.dtype), enabled=case.dtype != "float32")

    mode = torch.inference_mode if case.task == "forward" else torch.no_grad
    if fill and (case.task, case.form) != ("forward", "recorded"):
        with mode(), autocast():
            stream.fill_memory(clips)

    def forward() -> list[Tensor]:
        with torch.inference_mode(), autocast():
            return stream(clips)

    if case.form == "recorded":
        assert isinstance(model, MeMViT)
        if case.task == "forward":
            return _recorded(model, clips, autocast)
        stream.call = RecordedNetwork(model)
        if stream.memory is None:
            stream.memory = model.new_memory(len(clips), *clips.shape[2:])
    if case.task == "forward":
        return forward
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

    def train() -> None:
        with autocast():
            heads = stream(clips)
        _loss(heads).backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def usual_form(device: torch.device) -> Form:
    """How our own commands run a model at inference."""
    return "recorded" if device.type == "cuda" or cpu.is_available() else "eager"


@torch.inference_mode()
def _recorded(model: MeMViT, clips: Tensor, autocast: Callable[[], torch.autocast]) -> Step:
    """A stream's step, recorded; with a memory that is full."""

    def plain(clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        with autocast():
            return model(clips, memory)

    with autocast():
        memory = model.new_memory(len(clips), *clips.shape[2:])  # in the dtype that the stream will have
    recorded = RecordedStep(plain, clips, memory) if clips.is_cuda else RecordedOnCpu(plain, clips, memory, Workspace())
    for _ in range(model.config.memory.num_slots + 1):
        _, memory = recorded(clips, memory)

    def step() -> Logits:
        nonlocal memory
        with torch.inference_mode():
            logits, memory = recorded(clips, memory)
        return logits

    return step


def _loss(heads: list[Tensor]) -> Tensor:
    """Cross entropy of every head and, if there are several, time; all labels are 0."""
    logits = [head.float().flatten(0, -2) for head in heads]
    return sum((F.cross_entropy(x, x.new_zeros(len(x), dtype=torch.long)) for x in logits), logits[0].new_zeros(()))


@functools.lru_cache
def count_step(case: Case, config: MViTConfig) -> Work:
    """Operations and bytes of a step of this case; a memory has fixed slots, so an empty one stands for a full one."""
    with torch.device("meta"):
        model = build_model(config, case.contender).train(case.task == "training")
        clips = torch.empty(case.batch_size, config.in_channels, *clip_size(config, case.contender))
    stream = Stream(model)

    def step() -> None:
        with torch.set_grad_enabled(case.task == "training"):
            heads = stream(clips)
            if case.task == "training":
                _loss(heads).backward()

    return count_work(step, model if case.task == "training" else None)


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step.

    Attributes:
        peak_bytes: the most that there was; on a GPU of PyTorch's tensors, on a CPU of the whole process.
        base_bytes: what there was before the model was built.
    """

    peak_bytes: int
    base_bytes: int


def measure_memory(case: Case, config: MViTConfig, device: torch.device) -> StepMemory:
    """Builds a contender and runs it; in a process with nothing else in it, what it then holds is the contender's."""
    base = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    with PeakMemory(device) as peak:
        step = make_step(case, config, device)
        for _ in range(NUM_MEASURED_STEPS):
            step()
        synchronize(device)
    return StepMemory(peak.bytes, base)


def measure_memory_apart(case: Case, config: MViTConfig, device: torch.device) -> StepMemory:
    """`measure_memory` in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the last line of what it said.
    """
    task = {
        "case": dataclasses.asdict(case),
        "config": config.to_dict(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "memvit.benchmarks.contenders"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"the process that measures memory ended with {done.returncode}")
    return StepMemory(**json.loads(done.stdout))


def main() -> int:
    """Reads a case from the standard input and prints the memory that it takes."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    found = measure_memory(Case(**task["case"]), MViTConfig.from_dict(task["config"]), torch.device(task["device"]))
    print(json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
