"""`memvit evaluate`: measure predictions in files by the definitions of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from memvit.commands.terminal import say, stderr_console, stdout_console

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

    Examples:
        memvit evaluate ava truth.csv found.csv --excluded excluded.csv
        memvit evaluate ava truth.csv found.csv --json

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


def epic(
    annotations: str,
    submission: str,
    *,
    tail_verbs: str | None = None,
    tail_nouns: str | None = None,
    unseen_participants: str | None = None,
    json: bool = False,
) -> int:
    """Measure a submission to the recognition or anticipation challenge of EPIC-KITCHENS-100, as the challenge does.

    Prints top-1 and top-5 accuracy, or class-mean top-5 recall, of verbs, nouns and actions. Segments are matched by their
    narration ids. Files of tail classes and unseen participants that lie beside the annotations, under their official names,
    are used without being given.

    Examples:
        memvit evaluate epic EPIC_100_validation.csv submission.zip

    Args:
        annotations: CSV file of labelled segments, as EPIC_100_validation.csv.
        submission: zip file with the scores of these segments, in the form of the challenge.
        tail_verbs: CSV file of rare verbs, as EPIC_100_tail_verbs.csv.
        tail_nouns: CSV file of rare nouns, as EPIC_100_tail_nouns.csv.
        unseen_participants: CSV file of participants that training has not seen, as
            EPIC_100_unseen_participant_ids_validation.csv.
        json: print JSON, values in percent by the names of the official evaluators.
    """
    from memvit.commands.evaluate_report import epic_as_json, print_epic
    from memvit.metrics.epic_annotations import (
        TAIL_NOUNS_FILE,
        TAIL_VERBS_FILE,
        UNSEEN_PARTICIPANTS_FILE,
        read_annotations,
    )
    from memvit.metrics.epic_submission import read_submission

    subsets = {"tail_verbs": tail_verbs, "tail_nouns": tail_nouns, "unseen_participants": unseen_participants}
    found, missing = [], []
    for option, name in zip(subsets, (TAIL_VERBS_FILE, TAIL_NOUNS_FILE, UNSEEN_PARTICIPANTS_FILE), strict=True):
        beside = Path(annotations).with_name(name)
        if subsets[option] is None and beside.is_file():
            subsets[option] = str(beside)
            found.append(name)
        elif subsets[option] is None:
            missing.append(f"--{option}")
    segments = read_annotations(annotations)  # quickly found to be wrong, other than the scores
    scores = read_submission(submission)
    values = scores.measure(segments, **subsets)
    if found:
        say(stderr_console(), f"found beside {annotations} and used: {', '.join(found)}")
    if missing:
        say(stderr_console(), f"some values are left out, for want of {', '.join(missing)}")
    if json:
        print(epic_as_json(scores.challenge, len(segments), values))
    else:
        print_epic(scores.challenge, len(segments), values)
    return 0
