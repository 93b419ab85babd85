"""`memvit evaluate`: measure predictions in files by the definitions of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from memvit.commands.terminal import say, stdout_console

TABLE_FILE, PICTURE_FILE = "ap.csv", "ap.png"


def ava(
    groundtruth: str,
    detections: str,
    *,
    excluded: str | None = None,
    label_map: str | None = None,
    match_order: Literal["rows", "scores"] = "rows",
    out: str | None = None,
    json: bool = False,
) -> int:
    """Measure detected people and their actions: frame mAP at IoU 0.5, as AVA v2.2 defines it.

    Prints the mean average precision and that of every class. Both files are CSV without a header, a row for every action of
    a box; rows that cannot be used are left out, with a warning.

    Args:
        groundtruth: annotated boxes, video,second,x1,y1,x2,y2,action_id,person_id in every row.
        detections: detected boxes, video,second,x1,y1,x2,y2,action_id,score in every row.
        excluded: CSV file with keyframes that do not count, video,second in every row.
        label_map: names of the classes, all of which count: a CSV file with the columns label_id,label_name, or AVA's .pbtxt
            file; the 60 evaluated of AVA's 80 actions where left out.
        match_order: which of several detections gets an annotated box, the one in the first row, as in published numbers, or
            the one with the highest score, as in the official challenge. It is the same where rows are sorted by score.
        out: folder for ap.csv and ap.png, the average precision of every class as a table and as a picture.
        json: print JSON, values from 0 to 1.
    """
    from memvit.commands.evaluate_report import as_json, print_classes, write_classes
    from memvit.datasets.ava_actions import action_names
    from memvit.metrics.ava import evaluate_files, save_class_picture

    classes: Mapping[int, str] | None = None
    if label_map is not None:
        from memvit.datasets.label_maps import read_label_map

        classes = {int(number): name for number, name in read_label_map(label_map).items()}
    if out is not None:
        from memvit.models.hub import make_directory

        make_directory(out)  # before there is anything to lose
    result = evaluate_files(groundtruth, detections, excluded, classes=classes, match_order=match_order)
    names = action_names() if classes is None else classes
    if json:
        print(as_json(result, names))
    else:
        print_classes(result, names)
    if out is not None:
        write_classes(result, names, Path(out, TABLE_FILE))
        save_class_picture(result, Path(out, PICTURE_FILE), names=names)
        if not json:
            say(stdout_console(), f"written to {out}: {TABLE_FILE}, {PICTURE_FILE}")
    return 0
