"""`memvit predict`: recognise videos, one after another, and write what was found."""

from __future__ import annotations

from typing import Literal

from memvit.commands.models import choose_device, choose_dtype, choose_model
from memvit.commands.process import keep_freed_memory, share_cores
from memvit.commands.terminal import stderr_console


def predict(
    inputs: list[str],
    *,
    model: str | None = None,
    config: str | None = None,
    checkpoint: str | None = None,
    labels: list[str] | None = None,
    out: str = "predictions",
    overlay: bool = False,
    report: bool = False,
    resume: bool = False,
    topk: int = 5,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    sampling_rate: int | None = None,
    stride: int | None = None,
    image_fps: float = 30.0,
    drop: Literal["oldest", "none"] = "oldest",
    max_duration: float | None = None,
    max_attempts: int = 5,
    compile: bool = False,
) -> int:
    """Recognise what happens in videos, or what is coming, clip by clip, with memory.

    Each video gets a folder OUT/NAME with predictions.jsonl and predictions.csv, which grow while it runs, and at its end
    timeline.png, summary.json and, if asked for, overlay.mp4. Results of an earlier run there are replaced. Exit code 0:
    all is well; 1: a video is damaged or cannot be used, the others are done; 130: interrupted.

    A model with several heads, say verb and noun, also gives actions: one class of each head, scored by the product of their
    probabilities. A model that anticipates says at the end of every clip what goes on some time later; about_s is that time,
    the timeline shows it there, and the overlay from the end of the clip on.

    Examples:
        memvit predict kitchen.mp4 garden.mkv --model memvit_16x4.k400 --overlay
        memvit predict rtsp://camera/stream --model runs/kitchen/version_0/model --max_duration 3600

    Args:
        inputs: video files, folders or tar files of images (one video each), folders of videos (without their subfolders),
            addresses of live streams (rtsp://, udp://, http:// and so on) or cameras (/dev/video0).
        model: a preset (random weights, for trials), published weights such as memvit_16x4.k400, a directory that
            `memvit convert` or `save_pretrained` wrote, or a repository of the Hugging Face Hub.
        config: instead of a model, a YAML config of the authors' release.
        checkpoint: a .pyth checkpoint of the authors' release, for the config or for a preset.
        labels: class names: a text file with one per line, a .json list, or a .csv with id,name. One file per head, after
            which several heads are called.
        out: folder for the results.
        overlay: write an annotated video as well. Every frame shows what was recognised in its clip, so the file is read a
            second time; live sources cannot be.
        report: write report.html as well, a page with the video and what was recognised, as memvit report does. Live sources
            have none.
        resume: go on with an earlier run: leave videos as they are that a model of this name has done to their end, with the
            files wanted now. Other options are not compared.
        topk: classes listed per clip and head, and actions per clip.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        dtype: number format of the forward pass.
        start: where in the videos to start, seconds.
        end: where to stop, seconds.
        fps: frame rate that the sampling rate refers to. Left out: the model's own.
        sampling_rate: a clip takes every so-many-th frame. Left out: the model's own.
        stride: sampled frames from the start of a clip to the start of the next. Left out: a clip's length.
        image_fps: images per second of folders and tar files.
        drop: when the model is slower than a live source, drop the oldest waiting frames, or none and fall behind.
        max_duration: stop live sources after so many seconds.
        max_attempts: give up on a live source after so many failed connections in a row. 0: its first end is its end.
        compile: compile the model first. This takes a minute or more, and needs a C++ compiler.
    """
    share_cores()
    keep_freed_memory()
    from pathlib import Path

    from memvit.commands.batch import Batch, Reading, add_report
    from memvit.models.config import ACTION
    from memvit.models.hub import make_directory
    from memvit.online import OnlineRecognizer
    from memvit.online.predict import predict_video
    from memvit.online.results import OVERLAY_FILE, PREDICTIONS_FILE, VideoResult
    from memvit.online.runs import OnProgress, VideoSource, check_second_look
    from memvit.report import REPORT_FILE
    from memvit.video import LiveSource
    from memvit.video.errors import check_range

    batch = Batch(stderr_console())
    sources = batch.expand(inputs)
    if not sources:
        return batch.report()
    check_range(start, end)
    if topk < 1:
        raise ValueError(f"--topk {topk}: list 1 class per clip or more")
    if max_duration is not None and not max_duration > 0:
        raise ValueError(f"--max_duration {max_duration}: give seconds, more than 0")
    target = choose_device(device)
    number_format = choose_dtype(dtype, target)
    root = make_directory(out)
    chosen = choose_model(model, config, checkpoint)
    head_names = chosen.name_classes(labels)
    if ACTION in (head_names or ()):  # a file's name only
        head_names = None
    chosen.model.to(target)

    # One stream at a time: a wrong rate, or a model of boxes, is wrong for every video.
    recognizer = OnlineRecognizer(
        chosen.model, fps, sampling_rate, stride, dtype=number_format, max_batch_size=1, compile=compile
    )
    if compile:
        recognizer.warm_up()
    clip_s = recognizer.grid.num_frames * recognizer.grid.period_s

    def recognise(source: str, video: VideoSource, folder: Path, show: OnProgress) -> VideoResult:
        if report:
            check_second_look(video, "a report")
        recognizer.max_gap_s = clip_s if isinstance(video, LiveSource) else None  # one that was away begins a new clip
        result = predict_video(
            recognizer,
            video,
            folder,
            topk=topk,
            overlay=overlay,
            max_duration_s=max_duration,
            head_names=head_names,
            model_name=chosen.name,
            untrained=chosen.untrained,
            on_progress=show,
        )
        return add_report(result, source, image_fps, show) if report else result

    reading = Reading(start, end, image_fps, drop, max_attempts)
    files = [PREDICTIONS_FILE, *([OVERLAY_FILE] if overlay else []), *([REPORT_FILE] if report else [])]
    return batch.run(sources, root, reading, chosen, recognise, resume=files if resume else None)
