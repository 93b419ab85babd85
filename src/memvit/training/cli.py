"""`memvit fit`, `validate` and `test`: LightningCLI with our model, data and defaults."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

import memvit.training.data
import memvit.training.epic_kitchens
import memvit.training.kinetics  # noqa: F401 - the data modules are found by their names
from memvit.cli import TRAINING_COMMANDS
from memvit.commands.process import keep_freed_memory
from memvit.commands.terminal import say
from memvit.kernels.linear import lacks_bfloat16
from memvit.training.averaging import WeightAverage
from memvit.training.checkpoints import (
    FOLDER,
    LAST,
    SECTION,
    AtomicCheckpointIO,
    Checkpoints,
    check_same,
    read_checkpoint,
)
from memvit.training.data import VideoData
from memvit.training.journal import FILE as JOURNAL_FILE
from memvit.training.journal import JournalCallback
from memvit.training.module import VideoClassifier
from memvit.training.optimization import OptimizerOptions
from memvit.training.predictions import Predictions
from memvit.training.progress import TrainingProgress
from memvit.training.report import Announcement, finish_run
from memvit.training.runs import RunOptions, find_checkpoint, new_version, run_of
from memvit.training.weights import class_names_of

logger = logging.getLogger(__name__)

CKPT_PATH_HELP = (
    "a checkpoint of a run, or last or best of the newest run of this --run.name that has checkpoints; best once it has been "
    "validated. fit continues it, in place if it is the run's last, and starts anew while there is none; validate and test "
    "measure it"
)

TRAINER_DEFAULTS = {
    "max_epochs": 20,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 1,
    "enable_model_summary": False,
}


def run(arguments: Sequence[str], console: Console) -> int:
    """Runs `fit`, `validate` or `test`.

    Args:
        arguments: the command line, beginning with the subcommand.
        console: where messages and progress go.

    Returns:
        The exit code.

    Raises:
        SystemExit: for --help, and (code 2) arguments that cannot be understood.
        KeyboardInterrupt: the user interrupted it.
        ValueError, FileNotFoundError: something the user can set right.
    """
    _quieten()
    keep_freed_memory()
    TrainingCLI(console, list(arguments))
    return 0


def _quieten() -> None:
    """Lets Lightning speak only when something is wrong, and our own training tell what it does."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    ours = logging.getLogger("memvit.training")
    if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID")):
        ours.setLevel(logging.ERROR)  # the first process speaks for all
    else:
        ours.setLevel(min(logging.getLogger("memvit").level or logging.INFO, logging.INFO))
    for message in (
        ".*WeightAveraging callback with a model that overrides.*",  # it is meant to be built early
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*callbacks used to create the checkpoint need to be provided.*",  # measuring writes no checkpoints
        ".*Total length of `list` across ranks is zero.*",  # nothing to validate with
        ".*sync_dist=True.*",  # metrics are synchronised when they are computed
        ".*Grad strides do not match bucket view strides.*",
        ".*srun. command is available.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


class VideoTrainer(Trainer):
    """Lightning's trainer, to which 1 is one batch and 1.0 all of them, as its own help says.

    Which of `int` and `float` its annotations name first depends on what else was imported before it, for `typing` takes
    unions of the same types for one another; where it is `float`, the command line's 1 would become 1.0. Unions that are
    written as here keep their order.

    Args:
        limit_train_batches: how much of the training data an epoch takes; int: batches of each process, float: a share.
        limit_val_batches: how much of the data to validate with, in the same way.
        limit_test_batches: how much of the test data, in the same way.
        limit_predict_batches: how much of the data to predict, in the same way.
        overfit_batches: trains and validates with so little of the training data, in the same way; 0: with all as usual.
        others: everything else, as Lightning has it.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            **others,
        )


class SaveConfig(SaveConfigCallback):
    """Writes the configuration next to the logs of a training."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml`, from which the same training can be started."""
        if stage != "fit":
            return
        folder = next(c.folder for c in trainer.callbacks if isinstance(c, JournalCallback))  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config["ckpt_path"] = None
        self.parser.save(config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)


class TrainingCLI(LightningCLI):
    """The commands that train and measure models.

    Args:
        console: where messages and progress go.
        arguments: the command line, beginning with the subcommand.
    """

    def __init__(self, console: Console, arguments: list[str]) -> None:
        self.console = console
        self.wanted = [name for name in TRAINING_COMMANDS if name in arguments[:1]] or list(TRAINING_COMMANDS)
        self.folder: Path | None = None
        self.checkpoint: Path | None = None
        super().__init__(
            VideoClassifier,
            VideoData,
            trainer_class=VideoTrainer,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "memvit",
                **{name: {"description": TRAINING_COMMANDS[name]} for name in self.wanted},
            },
            subclass_mode_data=True,
            args=arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The subcommands, and the arguments of the trainer's methods that they do without.

        Only the one on the command line, if there is one: making the others' parsers takes longer than all other parsing.
        """
        skipped = {
            "model",
            "dataloaders",
            "train_dataloaders",
            "val_dataloaders",
            "datamodule",
            "ckpt_path",
            "weights_only",
            "verbose",
        }
        return dict.fromkeys(self.wanted, skipped)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our options to a subcommand."""
        parser.add_class_arguments(OptimizerOptions, "optimizer")
        parser.link_arguments("optimizer", "model.optimizer", apply_on="instantiate")
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument("--ckpt_path", type=str, help=CKPT_PATH_HELP)
        parser.add_argument("--debug", action="store_true", help="show tracebacks and what the library logs")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """A checkpoint changes no option: what differs is an error."""

    @property
    def run_options(self) -> RunOptions:
        """Where the run is kept."""
        options = self._get(self.config_init, "run")
        assert isinstance(options, RunOptions)
        return options

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with our callbacks and loggers."""
        options = self.run_options
        given = self._get(self.config_init, "ckpt_path")
        self.checkpoint = find_checkpoint(given, options.experiment) if given else None
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = []
        if config["enable_progress_bar"] is not False:
            callbacks.append(TrainingProgress(self.console))
        if self.subcommand == "fit":
            if given and self.checkpoint is None:
                logger.info(
                    "there is no %s checkpoint in %s yet: starting from the beginning", given, options.experiment
                )
            callbacks += self._prepare_fit(options, config)
        else:
            config["logger"] = False
            if given and self.checkpoint is None:
                raise FileNotFoundError(
                    f"--ckpt_path {given}: no run in {options.experiment} has a checkpoint; check --run.name and "
                    "--run.directory"
                )
            files = (self.model.predictions, self.model.detections, self.model.submission)
            callbacks.append(Predictions(*files, self.console))
        config["plugins"] = [*_as_list(config.get("plugins")), AtomicCheckpointIO()]
        config["callbacks"] = [*_as_list(config.get("callbacks")), *callbacks]
        return super().instantiate_trainer(**kwargs)

    def _prepare_fit(self, options: RunOptions, config: dict[str, Any]) -> list[Callback]:
        """Chooses the run's folder and sets up what is written there."""
        in_place = run_of(self.checkpoint) if self.checkpoint is not None else None
        self.folder = in_place or new_version(options.experiment)
        carried_over = None
        if self.checkpoint is not None and in_place is None:
            carried_over = self.checkpoint.parent.parent / JOURNAL_FILE
        if config["logger"] in (None, True):
            config["logger"] = TensorBoardLogger(self.folder.parent.parent, self.folder.parent.name, self.folder.name)
        callbacks: list[Callback] = []
        if not config["fast_dev_run"]:
            callbacks += [Announcement(self.folder), JournalCallback(self.folder, carried_over)]
        if options.ema_decay is not None:
            callbacks.append(WeightAverage(options.ema_decay))
        if config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
            callbacks.append(Checkpoints(self.folder / FOLDER, options.checkpoint_every_n_steps, options.monitor))
        return callbacks

    def before_fit(self) -> None:
        """Checks, before anything is written, that a checkpoint is of this training."""
        is_on_cpu = self.trainer.strategy.root_device.type == "cpu"
        if is_on_cpu and str(self.trainer.precision).startswith("bf16") and lacks_bfloat16():
            logger.warning(
                "this processor has no instructions for bfloat16: training takes several times as long with --trainer.precision "
                "%s as without it",
                self.trainer.precision,
            )
        if self.checkpoint is None:
            return
        saved = read_checkpoint(self.checkpoint, mmap=True)[SECTION]
        data = self.datamodule
        data.connect(self.model.base_config)
        data.dataset("train")
        current = self.model.identity(data, self.trainer.world_size, self.trainer.accumulate_grad_batches)
        check_same(saved["identity"], current, str(self.checkpoint))
        self.model.resumes = True

    def before_validate(self) -> None:
        """Takes the classes from what is measured."""
        self._use_known_classes()

    def before_test(self) -> None:
        """Takes the classes from what is measured."""
        self._use_known_classes()

    def _use_known_classes(self) -> None:
        if self.checkpoint is not None:
            head = read_checkpoint(self.checkpoint, mmap=True)[SECTION]["identity"]["model"]["head"]
            self.datamodule.known_classes = tuple(tuple(names) for names in head["class_names"]) or None
            self.model.resumes = True
        elif self.model.weights is not None:
            self.datamodule.known_classes = class_names_of(self.model.weights)
        else:
            raise ValueError(
                f"what is to be measured? Give --ckpt_path (a file, last or best of --run.name {self.run_options.name}) "
                "or --model.weights"
            )

    def fit(self, model: VideoClassifier, **kwargs: Any) -> None:
        """Trains."""
        if self.checkpoint is not None:
            logger.info("going on from %s", self.checkpoint)
        try:
            self.trainer.fit(model, ckpt_path=self.checkpoint, **kwargs)
        except SystemExit:  # what Lightning makes of Ctrl-C
            if self.trainer.state.status != "interrupted":
                raise
            assert self.folder is not None
            # Without a checkpoint of its own, last would be an older run's.
            saved = (self.folder / FOLDER / LAST).is_file()
            how = "--ckpt_path last goes on from the last checkpoint" if saved else "no checkpoint yet: start it anew"
            say(self.console, f"{self.folder}: {how}")
            raise KeyboardInterrupt from None

    def validate(self, model: VideoClassifier, **kwargs: Any) -> None:
        """Measures on the videos that training validates with."""
        self._tell_what_is_measured()
        self.trainer.validate(model, ckpt_path=self.checkpoint, verbose=False, **kwargs)

    def test(self, model: VideoClassifier, **kwargs: Any) -> None:
        """Measures on the test videos."""
        self._tell_what_is_measured()
        self.trainer.test(model, ckpt_path=self.checkpoint, verbose=False, **kwargs)

    def _tell_what_is_measured(self) -> None:
        logger.info("measuring %s", self.checkpoint or self.model.weights)

    def after_fit(self) -> None:
        """Draws the curves, writes the model and reports."""
        fast = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.trainer.is_global_zero and not fast and self.folder is not None:
            finish_run(self.trainer, self.model, self.folder, self.console)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
