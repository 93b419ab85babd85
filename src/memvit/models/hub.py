"""Models as directories, on disk and on the Hugging Face Hub: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memvit.models.config import MViTConfig
from memvit.models.hub_errors import hub_reason
from memvit.models.model_card import LIBRARY, TAGS, TASK, check_licence, model_card

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SOURCE_FILE = "source.json"  # of weights that are not ours

ModelT = TypeVar("ModelT", bound=nn.Module)


class HubModel(nn.Module, PyTorchModelHubMixin, library_name=LIBRARY, tags=list(TAGS), pipeline_tag=TASK):
    """A module that one `MViTConfig` describes, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Args:
        config: what the model is.
    """

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.config = config
        self.source: dict[str, Any] = {}  # where weights come from that are not ours: name, url, licence

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Writes `config.json`, `model.safetensors` and, unless there is one, a model card, `README.md`.

        Args:
            save_directory: made where missing.
            kwargs: for the card: license, metrics, dataset and repo_id, as for `push_to_hub`. The rest is as for
                huggingface_hub's `save_pretrained`.

        Raises:
            ValueError: the directory cannot be written, or the licence is not that of the weights it was made from.
        """
        facts: dict[str, Any] = {name: kwargs.pop(name) for name in ("license", "metrics", "dataset") if name in kwargs}
        facts |= {"repo_id": kwargs["repo_id"]} if kwargs.get("repo_id") else {}
        card = {**facts, **(kwargs.pop("model_card_kwargs", None) or {})}
        check_licence(card.get("license"), self.source)
        return super().save_pretrained(make_directory(save_directory), model_card_kwargs=card, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, self.config, save_directory)
        path = save_directory / SOURCE_FILE
        if self.source:
            _replace(path, lambda path: path.write_text(json.dumps(self.source, indent=2) + "\n", encoding="utf-8"))
        else:
            path.unlink(missing_ok=True)  # of another model that was here

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        metrics: Mapping[str, float] | None = None,
        dataset: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        **options: Any,
    ) -> str:
        """Uploads the model, with its labels, its preprocessing and a model card, to a repository of the Hub.

        Args:
            repo_id: "owner/name"; made where missing.
            license: of the weights, such as "apache-2.0". Weights converted from the authors' have theirs.
            metrics: what was measured, by name, for the card.
            dataset: what it was measured on.
            private: whether a new repository is private; None: as the owner's settings say.
            token: to log in with; None: the one of `hf auth login` or HF_TOKEN.
            options: as for huggingface_hub's `push_to_hub` (commit_message, branch, create_pr, ...).

        Returns:
            The address of the commit.

        Raises:
            ValueError: the licence is not that of the weights it was made from, or an unusable name.
            ConnectionError: the Hub cannot be reached, or refuses.
        """
        check_licence(license, self.source)
        facts = {"repo_id": repo_id, "license": license, "metrics": metrics, "dataset": dataset}
        card = {**facts, **(options.pop("model_card_kwargs", None) or {})}
        options.setdefault("commit_message", "Upload a memvit model")
        try:
            return str(super().push_to_hub(repo_id, private=private, token=token, model_card_kwargs=card, **options))
        except HFValidationError as error:
            raise ValueError(f"{repo_id!r} cannot be a repository: {hub_reason(error)}") from error
        except Exception as error:  # the classes of the client's network library change between its versions
            if isinstance(error, ValueError | TypeError):
                raise
            raise ConnectionError(f"{repo_id} was not uploaded: {hub_reason(error)}") from error

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, map_location: str = "cpu", **options: Any
    ) -> Self:
        """A model from a directory that `save_pretrained` wrote, or from the Hub, in eval mode.

        Args:
            pretrained_model_name_or_path: the directory, or a Hub repository "owner/name".
            map_location: the device that the model shall be on.
            options: for the Hub: revision, token, cache_dir, force_download, local_files_only. Anything else changes
                a config field; see `load_model`.

        Raises:
            FileNotFoundError, ValueError: as `load_model`.
        """
        return load_model(cls, pretrained_model_name_or_path, **options).to(map_location)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README of a saved model; see `memvit.models.model_card.model_card` for what it can be told.

        A `text` is the card as it is.
        """
        if (text := kwargs.pop("text", None)) is not None:
            return ModelCard(text)
        return model_card(self, self.config, source=self.source, **kwargs)


def make_directory(path: str | Path) -> Path:
    """Makes a directory to write into.

    Raises:
        ValueError: it cannot be, as a file has its name or the place is read-only.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be a directory: a file is in its place; choose another name") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be made ({error.strerror}); choose a place that you can write to") from error
    if not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written to; choose another directory")
    return path


def save_model(model: nn.Module, config: MViTConfig, directory: str | Path) -> None:
    """Writes `config.json` and `model.safetensors`; each appears whole or not at all.

    Raises:
        ValueError: the directory cannot be written.
    """
    directory = make_directory(directory)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
    _replace(directory / WEIGHTS_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _replace(directory / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_model(
    build: Callable[[MViTConfig], ModelT],
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> ModelT:
    """A saved model, in eval mode, with config fields changed where asked.

    Only the head, the box blocks and memory can change shape: their parameters are then newly initialised, and listed
    in a warning. Any other change of shape is an error.

    Args:
        build: makes the model that a config describes.
        source: a directory, or a Hub repository "owner/name".
        revision, token, cache_dir, force_download, local_files_only: as for `huggingface_hub.hf_hub_download`.
        overrides: as for `MViTConfig.replace`.

    Raises:
        FileNotFoundError: no such directory or repository, or a file of it is missing.
        ValueError: a file is damaged, or does not fit the config.
    """
    if Path(source).is_dir():
        config_file, weights_file = (Path(source) / name for name in (CONFIG_FILE, WEIGHTS_FILE))
    else:
        config_file, weights_file = (
            _from_hub(
                str(source),
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
            for name in (CONFIG_FILE, WEIGHTS_FILE)
        )
    saved = read_config_file(config_file)
    config = saved.replace(**overrides)
    model = build(config)
    fill(model, read_weights_file(weights_file), str(weights_file), changed_parts(saved, config))
    if isinstance(model, HubModel):
        model.source = read_source_file(weights_file.with_name(SOURCE_FILE))
    return model.eval()


def read_source_file(path: Path) -> dict[str, Any]:
    """Where the weights beside this file come from; empty for those that say nothing of it.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no JSON file ({error}); save or convert the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object; save or convert the model again")
    return {name: content[name] for name in ("name", "url", "licence", "made") if content.get(name)}


def read_config_file(path: Path) -> MViTConfig:
    """Reads `config.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, an unknown field, or fields that contradict one another.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path.parent} holds no {path.name}; give a directory that save_pretrained or `memvit convert` wrote"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no JSON file ({error}); save the model again") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} is no model config: expected an object, not {type(data).__name__}")
    try:
        return MViTConfig.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Reads `model.safetensors`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}; save or convert the model again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a safetensors file, or is cut short ({error}); save, copy or download it again"
        ) from error


def changed_parts(saved: MViTConfig, config: MViTConfig) -> Callable[[str], bool]:
    """Tells of a parameter's name whether it belongs to a part that the two configs build differently."""
    patterns = []
    if saved.head.num_classes != config.head.num_classes:
        patterns.append(r"head\.projection\.")
    if saved.head.box_depth != config.head.box_depth:
        patterns.append(r"box_blocks\.")
    if saved.memory != config.memory:
        patterns.append(r"blocks\.\d+\.attn\.((norm_)?compress_[kv]\.|rel_pos_mem_[hwt]$)")
    return lambda name: any(re.match(pattern, name) for pattern in patterns)


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str, may_differ: Callable[[str], bool]) -> None:
    """Loads weights: everything fits, but for parameters that may differ, which keep their initialisation.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape; the model is left as it was.
    """
    own = model.state_dict()
    new = [name for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    surplus = [name for name in state if name not in own]
    problems = [name for name in (*new, *surplus) if not may_differ(name)]
    if problems:
        raise ValueError(
            f"{source} does not fit the model: {_listed(problems)} missing, unknown or of another shape; with weights, only "
            "the head and memory can change (clips of another size or duration can be fed without changing the config)"
        )
    model.load_state_dict(
        {name: tensor for name, tensor in state.items() if name in own and name not in new}, strict=False
    )
    if new:
        logger.warning("%s: newly initialised, to be trained: %s", source, _listed(new))
    if surplus:
        logger.info("%s: left out: %s", source, _listed(surplus))


def _listed(names: Iterable[str]) -> str:
    """Names with the blocks' numbers folded: `blocks.*.attn.rel_pos_mem_t (8 times)`."""
    counts = Counter(re.sub(r"blocks\.\d+\.", "blocks.*.", name) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n} times)" for name, n in counts.items())


def _from_hub(repo: str, name: str, **options: Any) -> Path:
    """A file of a Hub repository, downloaded where it is not in huggingface_hub's cache."""
    try:
        return Path(hf_hub_download(repo, name, library_name="memvit", **options))
    except (HFValidationError, EntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{repo} is neither a directory here nor a model on the Hub with a {name} ({hub_reason(error)})"
        ) from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and moves it there once it is on the disk."""
    written = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write(written)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be written ({error}); free space or choose another place") from error
    finally:
        written.unlink(missing_ok=True)
