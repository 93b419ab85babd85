"""The Lightning module: a model with memory that learns from streams of clips."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor

from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import Batch, GroupedDataset
from memvit.datasets.streams import draws
from memvit.models.checkpointing import Recompute, parse_recompute
from memvit.models.config import MViTConfig
from memvit.models.heads import Logits
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.training.checkpoints import SECTION, check_same
from memvit.training.data import VideoData
from memvit.training.evaluation import Evaluation
from memvit.training.groups import GroupScores
from memvit.training.keyframes import KeyframeDetections
from memvit.training.loss_check import LossCheck
from memvit.training.losses import items_of, labels_of, summed_loss
from memvit.training.optimization import OptimizerOptions, build_optimizer, build_schedule, freeze
from memvit.training.recorded import RecordedNetwork
from memvit.training.views import clip_views
from memvit.training.weights import WeightsReport, base_config, load_weights

logger = logging.getLogger(__name__)

FORMAT = 1  # of what a checkpoint holds beside Lightning's parts
_FROM_DATA = ("num_classes", "task", "activation", "class_names", "head_names", "anticipation_s")


class VideoClassifier(LightningModule):
    """Learns to classify clips, their token times, or boxes in them, reading each stream of clips with its memory.

    A step never waits for a GPU: its loss is looked at when the next step has been asked for, so a loss that is no number ends
    the training one step late, and always before a checkpoint is written.

    The loss is normalised by the number of labelled items over all processes, per head, and the heads' means are added up;
    so processes that share a batch compute the gradients that one would. A step in which nothing is labelled has gradients
    of zero: weight decay and momentum act as in every other step, so that the schedule does not depend on labels.

    Memory is kept apart for training, validation and test; that of the training is part of the checkpoint. Every step's
    random numbers (dropout, stochastic depth) follow from the data's seed, the step and the process alone, so that a
    training that was interrupted goes on as if it had not been.

    Args:
        name: a preset such as memvit_tiny (`memvit.list_models()`), or a directory that `save_pretrained` wrote, for its
            config alone.
        options: model options to change, as for `MViTConfig.replace`: {memory_length: 4, drop_path: 0.2}. Classes and
            task come from the data.
        weights: what to start from: a directory, .safetensors or .ckpt of ours, a .pyth of the authors', or a name
            as of `memvit.create_model`; random weights where left out.
        optimizer: how the weights are trained.
        label_smoothing: share of the label that is spread over all classes.
        activation_checkpointing: what is computed again in the backward pass instead of being kept: less GPU memory, more
            time, the same gradients. none; mlp: what is inside the MLPs; selective: all but the results of linear layers and
            attention; blocks, or true: everything inside the blocks.
        compile: compiles the model with torch.compile: slow to start, then faster on a GPU. Training steps are compiled for
            their shapes alone, whatever sizes are validated with.
        record: records forward and backward passes as CUDA graphs, for clips of one size, so that the GPU does not wait for its
            host. Not with compile, activation_checkpointing or boxes; on a CPU nothing changes.
        predictions: CSV file that `memvit test` and `memvit validate` write their predictions to.
        detections: CSV file that they write the scores of boxes to, in the form of AVA's evaluation; a picture of the classes
            follows beside it.
        submission: zip file that they write for the EPIC-KITCHENS-100 challenge of the data's task.
        test_flip: measures every clip as it is and mirrored, each with a memory of its own, and averages the scores.
        test_crops: 3: `memvit test` reads whole pictures and looks at the squares at both ends and in the middle of the longer
            side, each with a memory of its own, and averages the scores; 1: at the middle, or at all with data.keep_aspect.
    """

    def __init__(
        self,
        name: str = "memvit_tiny",
        options: dict[str, Any] | None = None,
        weights: str | None = None,
        optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008 - frozen
        label_smoothing: float = 0.0,
        activation_checkpointing: bool | Recompute = False,
        compile: bool = False,
        record: bool = False,
        predictions: str | None = None,
        detections: str | None = None,
        submission: str | None = None,
        test_flip: bool = False,
        test_crops: Literal[1, 3] = 1,
    ) -> None:
        super().__init__()
        if test_crops not in (1, 3):
            raise ValueError(f"model.test_crops={test_crops} squares cannot be cut: give 1 or 3")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing={label_smoothing} must be at least 0 and below 1")
        given = [option for option in _FROM_DATA if option in (options or {})]
        if given:
            raise ValueError(f"model.options: {', '.join(given)} come from the data; leave them out")
        # Attention among boxes exists for this task alone; whether it is the data's shows later.
        task = {"task": "boxes"} if (options or {}).get("box_depth") else {}
        self.base_config: MViTConfig = base_config(name).replace(**task, **(options or {}))
        if record and (compile or parse_recompute(activation_checkpointing) != "none" or task):
            raise ValueError("model.record goes without model.compile, model.activation_checkpointing and boxes")
        self.weights = weights
        self.record = record
        self.optimizer_options = optimizer
        self.label_smoothing = label_smoothing
        self.activation_checkpointing = parse_recompute(activation_checkpointing)
        self.compile_network = compile
        self.predictions = predictions
        self.detections = detections
        self.submission = submission
        self.test_flip = test_flip
        self.test_crops = test_crops
        self.resumes = False  # weights come from a checkpoint
        self.network: MeMViT | None = None
        self._train_network: Callable[..., tuple[Logits, Memory]] | None = None
        self.weights_report: WeightsReport | None = None
        self.frozen: list[str] = []
        self.failures: Counter[str] = Counter()
        self.val_findings: KeyframeDetections | GroupScores | None = None
        self.test_findings: KeyframeDetections | GroupScores | None = None
        self.mean: Tensor
        self.std: Tensor
        self._memories: dict[str, Memory | None] = {}
        self._loss_check = LossCheck()
        self._saved_memory: dict[str, Tensor] | None = None

    @property
    def data(self) -> VideoData:
        """The data module that training is fed by."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoData):
            raise ValueError(
                "VideoClassifier needs a datamodule such as SegmentsData: trainer.fit(model, datamodule=...)"
            )
        return data

    @property
    def config(self) -> MViTConfig:
        """The model's config, classes included.

        Raises:
            ValueError: the model cannot serve the data's task.
        """
        return self.config_for(self.data)

    def config_for(self, data: VideoData) -> MViTConfig:
        """The config with the classes and the task of a data module that is connected."""
        dataset = data.reference()
        return self.base_config.replace(
            num_classes=tuple(len(names) for names in dataset.classes),
            class_names=dataset.classes,
            task=dataset.task,
            activation="sigmoid" if dataset.multi_label else "softmax",
            head_names=getattr(dataset, "head_names", ()),
            anticipation_s=getattr(dataset, "anticipation_s", 0.0),
        )

    def configure_model(self) -> None:
        """Builds the model once the data's classes are known; Lightning calls it, more than once."""
        if self.network is not None:
            return
        config = self.config
        network = MeMViT(config)
        if config.head.task == "frames" and network.token_grid()[0] != config.num_times:
            raise ValueError(
                f"the model has {network.token_grid()[0]} token times a clip after pooling, and the task frames labels "
                f"{config.num_times}; use q_strides that leave time alone"
            )
        if self.weights is not None and not self.resumes:
            self.weights_report = load_weights(network, self.weights)
            if self.weights_report.new and self.trainer.state.fn != "fit":
                raise ValueError(
                    f"{self.weights_report}: what is new is random, and cannot be measured; train it first"
                )
        self.frozen = freeze(network, self.optimizer_options.freeze)
        network.activation_checkpointing = self.activation_checkpointing
        if self.record:
            if config.head.task == "boxes":
                raise ValueError("model.record: boxes differ in number from clip to clip; leave it out")
            self._train_network = RecordedNetwork(network)
        if self.compile_network:
            network.compile()
            # On its own, so that sizes seen in validation do not make its shapes symbolic; boxes differ in number anyway.
            dynamic = None if config.head.task == "boxes" else False
            self._train_network = torch.compile(network.forward, dynamic=dynamic)
        self.network = network
        multi_label = config.head.activation == "sigmoid"
        self.val_evaluation = Evaluation(config.head.num_classes, multi_label)
        self.test_evaluation = Evaluation(config.head.num_classes, multi_label)
        self.val_findings, self.test_findings = (self._new_findings(config) for _ in range(2))
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1, 1), persistent=False)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule by steps."""
        assert self.network is not None
        self.trainer.fit_loop.setup_data()  # with max_steps, batches are not counted otherwise
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise ValueError("the schedule needs to know its end: give --trainer.max_epochs or --trainer.max_steps")
        # With a scaler, fused optimisers unscale gradients themselves: too late for them to be clipped before.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        fused = not (scaled and self.trainer.gradient_clip_val)
        optimizer = build_optimizer(self.network, self.optimizer_options, fused=fused)
        steps_per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        schedule = build_schedule(optimizer, self.optimizer_options, steps_per_epoch, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips gradients, in bfloat16 with a fused optimiser too.

        That Lightning refuses in all mixed precision, because fused optimisers unscale gradients; bfloat16's are not scaled.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def forward(self, batch: Batch, role: str) -> Logits:
        """The logits of a batch of streams; their memory is kept under a role ("train", "val", "test")."""
        clips = ((batch.clips.float() / 255 - self.mean) / self.std).to(self.dtype)
        if role == "train":
            return self._recognise(clips, batch.boxes, batch.starts, role)
        crops = self.test_crops if role == "test" else 1
        if crops > 1 and batch.boxes is not None:
            raise ValueError("model.test_crops=3 would cut people off: leave it out where there are boxes")
        looks = [
            self._recognise(view.clips, view.boxes, batch.starts, f"{role} {view.name}".strip())
            for view in clip_views(clips, batch.boxes, crops=crops, flip=self.test_flip)
        ]
        if len(looks) == 1:
            return looks[0]
        heads = zip(*(look if isinstance(look, tuple) else (look,) for look in looks), strict=True)
        means = tuple(self._mean_logits(head) for head in heads)
        return means if isinstance(looks[0], tuple) else means[0]

    def _recognise(self, clips: Tensor, boxes: list[Tensor] | None, starts: Tensor, role: str) -> Logits:
        assert self.network is not None
        memory = self._memory_for(role, clips).forget(starts)
        network = self._train_network if role == "train" and self._train_network is not None else self.network
        logits, self._memories[role] = network(clips, memory, boxes=boxes)
        return logits

    def _mean_logits(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits of the mean of the scores that several logits stand for."""
        score = self._scores(torch.stack(tuple(logits))).mean(dim=0)
        return score.logit(eps=1e-7) if self.config.head.activation == "sigmoid" else score.clamp(min=1e-30).log()

    def _scores(self, logits: Tensor) -> Tensor:
        """From 0 to 1, float32."""
        return logits.float().sigmoid() if self.config.head.activation == "sigmoid" else logits.float().softmax(dim=-1)

    def _memory_for(self, role: str, clips: Tensor) -> Memory:
        assert self.network is not None
        memory = self._memories.get(role)
        size = (clips.shape[2], clips.shape[3], clips.shape[4])
        if memory is not None and len(memory) == len(clips) and memory.clip_grid == self.network.patch_embed.grid(size):
            return memory
        memory = self.network.new_memory(len(clips), *size)
        if role == "train" and self._saved_memory is not None:
            memory.load_state_dict(self._saved_memory)
            self._saved_memory = None
        return memory

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step's random numbers independent of everything before it."""
        key = (self.data.seed, batch.epoch, batch.step, self.global_rank)
        torch.manual_seed(int(draws("training step", *key).integers(2**63)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one clip of every stream."""
        self._note_failures(batch)
        logits = self(batch, "train")
        sums = [
            summed_loss(scores, labels, self.label_smoothing) for scores, labels in items_of(logits, labels_of(batch))
        ]
        local = torch.stack([*(loss.detach() for loss, _ in sums), *(count.float() for _, count in sums)])
        losses, counts = self._sum_over_processes(local).chunk(2)
        counts = counts.clamp(min=1)
        mean = (losses / counts).sum()
        self._loss_check.add(batch, mean, local)
        self.log("train/loss", mean, prog_bar=True, batch_size=len(batch))
        lr = torch.tensor(self.trainer.optimizers[0].param_groups[-1]["lr"])  # stays on the CPU
        self.log("train/lr", lr, batch_size=len(batch))
        self.data.trained(batch, self.trainer.num_training_batches)
        # Gradients are averaged over processes: times their number makes that a sum.
        total = sum(loss / count for (loss, _), count in zip(sums, counts, strict=True))
        return total * self.trainer.world_size

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        summed = values.clone()
        torch.distributed.all_reduce(summed)  # the strategy's `reduce` has all processes wait for one another before
        return summed

    def on_train_end(self) -> None:
        """Looks at the last loss."""
        self._loss_check.finish()

    def on_validation_epoch_start(self) -> None:
        """Starts with empty memories."""
        self._loss_check.finish()
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        """Starts with empty memories."""
        self._begin("test")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Counts one clip of every stream; returns logits and labels per head as `items`."""
        return {"items": self._evaluate(batch, "val")}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Counts one clip of every stream; returns logits and labels per head as `items`."""
        return {"items": self._evaluate(batch, "test")}

    def on_validation_epoch_end(self) -> None:
        """Logs what was counted."""
        self._end("val")

    def on_test_epoch_end(self) -> None:
        """Logs what was counted."""
        self._end("test")

    def _new_findings(self, config: MViTConfig) -> KeyframeDetections | GroupScores | None:
        """What measures more than clips one by one, where the data set wants it."""
        dataset = self.data.reference()
        if isinstance(dataset, AvaDataset):
            return KeyframeDetections(config.head.num_classes[0])
        return GroupScores(config.head.num_classes) if isinstance(dataset, GroupedDataset) else None

    def measures(self, role: str) -> tuple[Evaluation, KeyframeDetections | GroupScores | None]:
        """What counts items, and what measures boxes at keyframes, segments or videos, of a role: "val" or "test"."""
        if role == "val":
            return self.val_evaluation, self.val_findings
        return self.test_evaluation, self.test_findings

    def _begin(self, role: Literal["val", "test"]) -> None:
        self._memories = {name: memory for name, memory in self._memories.items() if not name.startswith(role)}
        evaluation, findings = self.measures(role)
        evaluation.reset()
        if findings is not None:
            findings.begin(self.data.dataset(role))  # type: ignore[arg-type]

    def _evaluate(self, batch: Batch, role: str) -> list[tuple[Tensor, Tensor]]:
        self._note_failures(batch)
        logits = self(batch, role)
        items = items_of(logits, labels_of(batch))
        evaluation, findings = self.measures(role)
        evaluation.update(items)
        if findings is not None:
            heads = logits if isinstance(logits, tuple) else (logits,)
            findings.update(batch, [self._scores(head) for head in heads])
        return items

    def _end(self, role: str) -> None:
        evaluation, findings = self.measures(role)
        values = evaluation.compute()
        sanity_checking = self.trainer.sanity_checking  # which is about names, and sees a few clips only
        if not evaluation.num_labelled and not sanity_checking:
            values = {}  # as of detected boxes; NaN would read as if the training diverged
        if isinstance(findings, GroupScores):  # clips one by one are not what the data set measures
            values = {name: value for name, value in values.items() if name == "loss"} | findings.compute()
            if findings.num_missed and not sanity_checking:
                total = len(findings.num_clips)
                logger.warning("%d of %d segments or videos were not read and do not count", findings.num_missed, total)
        elif findings is not None:
            values |= {"mAP": torch.tensor(math.nan)} if sanity_checking else findings.compute()
        self.log_dict({f"{role}/{name}": value for name, value in values.items()})
        self._memories = {name: memory for name, memory in self._memories.items() if not name.startswith(role)}

    def _note_failures(self, batch: Batch) -> None:
        for video, why in batch.failures:
            if not self.failures[video]:
                logger.warning("%s cannot be read and is left out: %s", video, why)
            self.failures[video] += 1

    def identity(self, data: VideoData, world_size: int, accumulate: int) -> dict[str, Any]:
        """What a training must have in common with the one that it continues.

        Args:
            data: connected.
            world_size: processes.
            accumulate: batches per optimiser step.
        """
        options = self.optimizer_options
        model = self.config_for(data).to_dict()
        for name in ("names", "anticipation_s"):  # what the data says of them is among its own facts
            del model["head"][name]
        return {
            "model": model,
            "data": data.identity(),
            "optimizer": {"name": options.name, "layer_decay": options.layer_decay, "freeze": tuple(options.freeze)},
            "trainer": {"world_size": world_size, "accumulate_grad_batches": accumulate},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the training is and every process's memory; all processes come here.

        Raises:
            ValueError: the last loss is no number.
        """
        self._loss_check.finish()
        memory = self._memories.get("train")
        mine = None if memory is None else {name: tensor.cpu() for name, tensor in memory.state_dict().items()}
        everyone: list[Any] = [mine]
        if self.trainer.world_size > 1:
            everyone = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        head = self.config_for(self.data).head
        checkpoint[SECTION] = {
            "format": FORMAT,
            "identity": self.identity(self.data, self.trainer.world_size, self.trainer.accumulate_grad_batches),
            # What models are made of for other purposes, which a training that goes on takes from its data.
            "head": {"head_names": head.names, "anticipation_s": head.anticipation_s},
            "memory": everyone,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint is of this training and takes over this process's memory.

        Raises:
            ValueError: it is of another training, or of another model.
        """
        saved = checkpoint[SECTION]
        if self.trainer.state.fn != "fit":
            check_same(
                {"model": shape_of(saved["identity"]["model"])},
                {"model": shape_of(self.config.to_dict())},
                "the checkpoint",
            )
            return
        current = self.identity(self.data, self.trainer.world_size, self.trainer.accumulate_grad_batches)
        check_same(saved["identity"], current, "the checkpoint")
        self._saved_memory = saved["memory"][self.global_rank]

    def save_network(self, directory: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Writes the model as a directory for `memvit.create_model` and `memvit predict`.

        Args:
            directory: made where missing.
            state: this module's state dict in a checkpoint; the weights as they are now where left out.
        """
        assert self.network is not None
        network = MeMViT(self.network.config)
        prefix = "network."
        source = self.state_dict() if state is None else state
        network.load_state_dict({n.removeprefix(prefix): t for n, t in source.items() if n.startswith(prefix)})
        network.save_pretrained(directory)


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model config without what does not matter once it is trained: the rates of dropout, what its answers are called."""
    unimportant = ("dropout", "drop_path", "names", "anticipation_s")
    kept = {name: value for name, value in config.items() if not name.endswith(unimportant) or name == "class_names"}
    return {name: shape_of(value) if isinstance(value, Mapping) else value for name, value in kept.items()}
