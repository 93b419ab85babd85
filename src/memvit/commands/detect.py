"""`memvit detect`: find people in videos, recognise what they do, draw it."""

from __future__ import annotations

from typing import Literal

from memvit.commands.models import ChosenModel, choose_device, choose_dtype, choose_model
from memvit.commands.process import keep_freed_memory, share_cores
from memvit.commands.terminal import stderr_console

NUM_AVA_ACTIONS = 80


def detect(
    inputs: list[str],
    *,
    model: str | None = None,
    config: str | None = None,
    checkpoint: str | None = None,
    labels: list[str] | None = None,
    boxes: str | None = None,
    detector: str | None = None,
    detector_weights: str | None = None,
    detect_fps: float = 2.0,
    person_score: float = 0.6,
    every: float = 1.0,
    first_second: float = 0.0,
    out: str = "detections",
    no_overlay: bool = False,
    report: bool = False,
    resume: bool = False,
    threshold: float = 0.3,
    topk: int = 5,
    min_score: float = 0.001,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    sampling_rate: int | None = None,
    image_fps: float = 30.0,
) -> int:
    """Find the people in videos and recognise what each of them does, once a second, with memory.

    Each video gets a folder OUT/NAME with detections.jsonl, detections.csv (in AVA's form) and boxes.csv (every box that was
    seen, for --boxes), which grow while it runs, and at its end overlay.mp4 and summary.json. Results of an earlier run there
    are replaced. Exit code 0: all is well; 1: a video is damaged or cannot be used, the others are done; 130: interrupted.

    Examples:
        memvit detect film.mp4 --model memvit_16x4_ava.k400
        memvit detect film.mp4 --model DIR --boxes boxes.csv --labels actions.txt

    Args:
        inputs: video files, folders or tar files of images (one video each) or folders of videos (without their subfolders).
            Each is read twice, so no live streams.
        model: a model of boxes: a preset such as memvit_16x4_ava (random weights, for trials), published weights such as
            memvit_16x4_ava.k400, a directory, or a repository of the Hugging Face Hub.
        config: instead of a model, a YAML config of the authors' release.
        checkpoint: a .pyth checkpoint of the authors' release, for the config or for a preset.
        labels: class names, a file with one per line, a .json list, or a .csv with id,name. Models of 80 classes without
            names get AVA's actions.
        boxes: instead of a detector, a CSV file in AVA's form with the boxes of people, one per line, for one or several
            videos: video,second,x1,y1,x2,y2,action_id,person_id. Corners are fractions of the frame, seconds count from the
            video's beginning, and the last two columns may be left out.
        detector: finds the people: a detector of torchvision, fasterrcnn_resnet50_fpn_v2 where left out; on a CPU
            fasterrcnn_mobilenet_v3_large_320_fpn and ssdlite320_mobilenet_v3_large are many times faster; or rfdetr_nano,
            rfdetr_small, rfdetr_medium or rfdetr_large (pip install 'memvit[rfdetr]').
        detector_weights: a file or an address with the detector's weights, where its own cannot be downloaded.
        detect_fps: detections per second. More make boxes follow fast movements and tell people apart who cross.
        person_score: people to whom the detector, or the file of boxes, gives a lower score are left out, 0 to 1.
        every: seconds from one keyframe, where actions are recognised, to the next. With a file of boxes, its seconds are
            keyframes, but no more often than about this; longer stretches without boxes are filled up.
        first_second: what the file of boxes, and detections.csv, call the beginning of the video; 900 for AVA's own.
        out: folder for the results.
        no_overlay: leave out overlay.mp4.
        report: write report.html as well, a page with the video and everybody in it, as memvit report does.
        resume: go on with an earlier run: leave videos as they are that a model of this name has done to their end, with the
            files wanted now. Other options are not compared.
        threshold: actions with a lower score are not drawn, 0 to 1.
        topk: actions listed per person in detections.jsonl.
        min_score: actions with a lower score are left out of detections.csv. 0 lists all, as AVA's evaluation would have it;
            what is left out by default is too little to move its result.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        dtype: number format of the forward pass.
        start: where in the videos to start, seconds.
        end: where to stop, seconds.
        fps: frame rate that the sampling rate refers to. Left out: the model's own.
        sampling_rate: a clip takes every so-many-th frame. Left out: the model's own.
        image_fps: images per second of folders of images.
    """
    share_cores()
    keep_freed_memory()
    from pathlib import Path

    from memvit.commands.batch import Batch, Reading, add_report
    from memvit.models.hub import make_directory
    from memvit.online.box_files import BoxFile
    from memvit.online.boxes import BoxRecognizer
    from memvit.online.detect import check_scores, detect_video
    from memvit.online.detections import DETECTIONS_FILE
    from memvit.online.detectors import DEFAULT_DETECTOR, check_detector, create_detector
    from memvit.online.persons import DetectedPersons, PersonSource, check_looks
    from memvit.online.results import OVERLAY_FILE, VideoResult
    from memvit.online.runs import OnProgress, VideoSource, check_second_look
    from memvit.report import REPORT_FILE
    from memvit.video import ImageFolderReader, LiveSource, VideoReader
    from memvit.video.errors import check_range

    batch = Batch(stderr_console())
    sources = batch.expand(inputs)
    if not sources:
        return batch.report()
    check_range(start, end)
    check_scores(topk, min_score, threshold)
    check_looks(every, detect_fps, person_score)
    if boxes is not None and (detector is not None or detector_weights is not None):
        raise ValueError(f"--boxes {boxes} needs no detector: leave out --detector and --detector_weights, or --boxes")
    detector = detector or DEFAULT_DETECTOR
    check_detector(detector)
    target = choose_device(device)
    number_format = choose_dtype(dtype, target)
    given = None if boxes is None else BoxFile(boxes, first_second)
    chosen = _choose_box_model(model, config, checkpoint, labels)
    recognizer = BoxRecognizer(chosen.model, fps, sampling_rate, dtype=number_format)
    found = None if given is not None else create_detector(detector, detector_weights, target)
    root = make_directory(out)
    chosen.model.to(target)

    def find_persons(video: VideoReader | ImageFolderReader) -> PersonSource:
        if given is not None:
            return given.persons(video.info, every_s=every, min_score=person_score)
        assert found is not None
        return DetectedPersons(found, every_s=every, detect_fps=detect_fps, min_score=person_score)

    def recognise(source: str, video: VideoSource, folder: Path, show: OnProgress) -> VideoResult:
        if report and not isinstance(video, LiveSource):  # these are refused for all else
            check_second_look(video, "a report")
        result = detect_video(
            recognizer,
            video,
            find_persons,
            folder,
            topk=topk,
            min_score=min_score,
            overlay=not no_overlay,
            threshold=threshold,
            csv_name=None if given is None or isinstance(video, LiveSource) else given.name_of(video.path),
            first_second=first_second,
            model_name=chosen.name,
            untrained=chosen.untrained,
            on_progress=show,
        )
        return add_report(result, source, image_fps, show) if report else result

    files = [DETECTIONS_FILE, *([] if no_overlay else [OVERLAY_FILE]), *([REPORT_FILE] if report else [])]
    return batch.run(sources, root, Reading(start, end, image_fps), chosen, recognise, resume=files if resume else None)


def _choose_box_model(
    model: str | None, config: str | None, checkpoint: str | None, labels: list[str] | None
) -> ChosenModel:
    """The model of boxes that the options name, its actions named where anybody knows their names.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `choose_model`, or it is no model of boxes.
    """
    from memvit.datasets.ava_actions import action_names
    from memvit.models.presets import PRESETS
    from memvit.models.zoo import WEIGHTS

    names = [name for name, preset in PRESETS.items() if preset.head.task == "boxes"]
    names += [name for name, weights in WEIGHTS.items() if weights.preset in names]
    if model is None and config is None:
        raise ValueError(f"which model? give --model, one of {', '.join(names)}, or a directory")
    chosen = choose_model(model, config, checkpoint)
    head = chosen.model.config.head
    if head.task != "boxes":
        raise ValueError(
            f"{chosen.name} classifies whole clips, not what each person does: use memvit predict with it, or one of "
            f"{', '.join(names)}, or a model trained with boxes"
        )
    if labels:
        chosen.name_classes(labels)
    elif not head.class_names and head.num_classes == (NUM_AVA_ACTIONS,):
        chosen.model.config = chosen.model.config.replace(class_names=(tuple(action_names().values()),))
    return chosen
