"""What a benchmark of speed found: every single time, kept as JSON, and the figures that follow from them."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memvit.benchmarks.contenders import Case, Form, Task
from memvit.benchmarks.machine import Rates
from memvit.benchmarks.timing import Estimate, paired_ratio

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CaseTimes:
    """One contender at one task, timed in turns with the others of its group: same task, number format and batch size.

    Attributes:
        case: which.
        name: what to call the contender.
        clip_size: frames, height and width of its clips.
        flops, num_bytes: what a step has to compute and to move, see `roofline`.
        roofline_s: the least time for that at the machine's rates.
        seconds: of each step, by rounds; empty where it failed.
        peak_bytes, base_bytes: memory in the step and before the model was built; None where it was not measured.
        error: why there are no times.
    """

    case: Case
    name: str
    clip_size: tuple[int, int, int]
    flops: int
    num_bytes: int
    roofline_s: float
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    base_bytes: int | None = None
    error: str | None = None

    @property
    def clips_per_s(self) -> float:
        """At the median time."""
        return self.case.batch_size / statistics.median(self.seconds)

    @property
    def flops_per_s(self) -> float:
        """Operations that the step has to compute, over the median time."""
        return self.flops / statistics.median(self.seconds)

    @property
    def own_bytes(self) -> int | None:
        """Memory that the step took besides what was there before; None where it was not measured."""
        if self.peak_bytes is None or self.base_bytes is None:
            return None
        return self.peak_bytes - self.base_bytes


@dataclass(frozen=True)
class MemoryTimes:
    """A model with memory and the same model without it, in turns, one stream.

    Attributes:
        dtype: number format.
        length: past clips that a layer attends, M.
        seconds, seconds_without: of each step, by pairs.
    """

    dtype: str
    length: int
    seconds: tuple[float, ...]
    seconds_without: tuple[float, ...]

    @property
    def ratio(self) -> Estimate:
        """Time with memory over time without, by pairs."""
        return paired_ratio(self.seconds, self.seconds_without)


@dataclass(frozen=True)
class StreamTimes:
    """Several streams in one batch.

    Attributes:
        dtype: number format.
        num_streams: clips in a step, each of another stream.
        seconds: of each step.
    """

    dtype: str
    num_streams: int
    seconds: tuple[float, ...]

    @property
    def stream_s(self) -> float:
        """Median seconds of a step, for each stream."""
        return statistics.median(self.seconds) / self.num_streams


@dataclass(frozen=True)
class VideoTimes:
    """A video file from end to end, and its parts alone.

    Attributes:
        dtype: number format.
        width, height, fps, num_frames: the video's.
        num_clips: clips in it.
        reading: seconds to decode it and to choose, scale and crop the frames of all clips.
        model: seconds for the model to recognise as many clips.
        recognizer: seconds for both, by `OnlineRecognizer.run`.
        predict: seconds for `predict_video`, which also writes the results and draws the timeline.
    """

    dtype: str
    width: int
    height: int
    fps: float
    num_frames: int
    num_clips: int
    reading: tuple[float, ...]
    model: tuple[float, ...]
    recognizer: tuple[float, ...]
    predict: tuple[float, ...]

    def frames_per_s(self, part: str) -> float:
        """Frames of the video per second, at the median time of a part: "reading", "model", "recognizer" or "predict"."""
        return self.num_frames / statistics.median(getattr(self, part))

    def over_slower(self, part: str) -> float:
        """The time of a part over that of reading alone or the model alone, whichever is slower."""
        return self.frames_per_s("slower") / self.frames_per_s(part)

    @property
    def slower(self) -> tuple[float, ...]:
        """The times of reading or of the model, whichever is slower."""
        return max(self.reading, self.model, key=statistics.median)


@dataclass
class SpeedResult:
    """All that one run measured.

    Attributes:
        model: what it is called; config: the same in full, as `MViTConfig.to_dict` gives it.
        date: when, UTC.
        machine: `describe_machine`.
        rates: the machine's own rates.
        plan: what was to be measured and how often.
        cases, memory, streams, videos: measurements; empty where there are none.
    """

    model: str
    config: dict[str, Any]
    date: str
    machine: dict[str, str | int]
    rates: Rates
    plan: dict[str, Any] = field(default_factory=dict)
    cases: list[CaseTimes] = field(default_factory=list)
    memory: list[MemoryTimes] = field(default_factory=list)
    streams: list[StreamTimes] = field(default_factory=list)
    videos: list[VideoTimes] = field(default_factory=list)

    def group(self, case: Case) -> list[CaseTimes]:
        """The cases that took turns with this one, itself included."""
        key = case.task, case.dtype, case.batch_size
        return [c for c in self.cases if (c.case.task, c.case.dtype, c.case.batch_size) == key]

    def over_torchvision(self, times: CaseTimes, form: Form = "eager") -> Estimate | None:
        """The time of a case over that of mvit_v2_s in the same rounds; None where either has no times."""
        for base in self.group(times.case):
            if (base.case.contender, base.case.form) == ("mvit_v2_s", form) and base.seconds and times.seconds:
                return paired_ratio(times.seconds, base.seconds)
        return None

    def of_task(self, task: Task) -> list[CaseTimes]:
        """The cases of a task."""
        return [c for c in self.cases if c.case.task == task]

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        data = {"version": FORMAT_VERSION, **dataclasses.asdict(self)}
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SpeedResult:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; memvit benchmark writes one")
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("version") != FORMAT_VERSION:
                raise ValueError(f"of another version than {FORMAT_VERSION}")
            data["rates"] = Rates(**data["rates"])
            data["cases"] = [CaseTimes(**_tuples({**row, "case": Case(**row["case"])})) for row in data["cases"]]
            data["memory"] = _rows(MemoryTimes, data["memory"])
            data["streams"] = _rows(StreamTimes, data["streams"])
            data["videos"] = _rows(VideoTimes, data["videos"])
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no result of memvit benchmark ({error}): run it again") from error


def _rows(kind: type, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [kind(**_tuples(row)) for row in rows]


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
