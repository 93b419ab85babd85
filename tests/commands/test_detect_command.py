from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands.conftest import Run
from local_server import serving
from memvit.datasets.ava_actions import action_names
from memvit.online.detections import read_detections
from memvit.online.results import read_summary
from online.people import LIGHT, light_detector_weights, write_boxes, write_people
from tiny_models import small_model
from video.encode import damage, write_video

MODEL = ("--model", "boxes", "--out", "out")
GIVEN = (*MODEL, "--boxes", "boxes.csv")
FILES = {"detections.jsonl", "detections.csv", "boxes.csv", "overlay.mp4", "summary.json"}


@pytest.fixture(autouse=True)
def _here(run: Run) -> None:
    """A model of boxes and a video with its boxes in the empty folder where commands run."""
    small_model(task="boxes", activation="sigmoid", box_depth=1, fps=10.0).save_pretrained("boxes")
    write_people(Path("people.mp4"), duration_s=3.0)
    write_boxes(Path("boxes.csv"), [0.0, 1.0, 2.0])


def test_given_boxes_are_recognised_and_drawn(run: Run) -> None:
    code, out, err = run("detect", "people.mp4", *GIVEN, "--topk", "2")
    assert (code, err) == (0, "")
    assert "complete" in out
    assert "people" in out
    assert {path.name for path in Path("out/people").iterdir()} == FILES
    summary = read_summary("out/people")
    assert (summary.status, summary.num_clips, summary.num_persons, summary.num_boxes) == ("complete", 3, 2, 6)
    records = list(read_detections("out/people"))
    assert [[len(actions) for actions in record.actions] for record in records] == [[2, 2]] * 3
    assert Path("out/people/detections.csv").read_text().startswith("people,0000,0.05000,0.25000,0.20000,0.75000,1,0.")


def test_a_detector_finds_people(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    options = ("--detector", LIGHT, "--person_score", "0.3", "--detect_fps", "1", "--no_overlay", "--end", "2")
    with serving({"/w.pth": light_detector_weights()}) as (address, _):
        code, out, err = run("detect", "people.mp4", *MODEL, *options, "--detector_weights", f"{address}/w.pth")
    assert code == 0
    assert err.startswith(f"warning: downloading the weights of {LIGHT} from {address}/w.pth")
    assert "complete" in out
    summary = read_summary("out/people")
    assert summary.num_clips == 2
    assert summary.num_persons is not None
    assert summary.num_persons > 0
    assert not Path("out/people/overlay.mp4").exists()


def test_nobody_is_complete_and_said(run: Run) -> None:
    Path("w.pth").write_bytes(light_detector_weights())
    options = ("--detector", LIGHT, "--detector_weights", "w.pth", "--person_score", "1", "--detect_fps", "1")
    code, out, _ = run("detect", "people.mp4", *MODEL, *options, "--no_overlay")
    assert code == 0
    assert "complete, nobody was found" in out
    assert json.loads(Path("out/people/summary.json").read_text())["message"] == "nobody was found"


def test_one_file_of_boxes_serves_several_videos(run: Run) -> None:
    write_people(Path("more.mkv"), duration_s=2.0)
    Path("boxes.csv").write_text(Path("boxes.csv").read_text() + "more.mkv,1,0.2,0.2,0.4,0.8\n")
    code, out, err = run("detect", "people.mp4", "more.mkv", "data/ok.mp4", *GIVEN, "--no_overlay")
    assert code == 1
    assert "error: data/ok.mp4: boxes.csv has no boxes of ok.mp4, only of 'people'; 'more.mkv'" in err
    assert err.strip().splitlines()[-1] == "failed: data/ok.mp4"
    assert out.count("complete") == 2
    assert {path.name for path in Path("out").iterdir()} == {"people", "more"}
    assert Path("out/more/detections.csv").read_text().startswith("more.mkv,0001,")


def test_ava_names_its_actions_and_labels_name_others(run: Run) -> None:
    small_model(task="boxes", num_classes=80, activation="sigmoid", fps=10.0).save_pretrained("ava")
    options = ("--boxes", "boxes.csv", "--no_overlay", "--out", "out")
    assert run("detect", "people.mp4", "--model", "ava", *options)[0] == 0
    labels = {label for record in read_detections("out/people") for actions in record.actions for label, _ in actions}
    assert labels <= set(action_names().values())
    Path("names.txt").write_text("sit\nstand\nwalk\nrun\njump\n")
    assert run("detect", "people.mp4", "--model", "boxes", *options, "--labels", "names.txt")[0] == 0
    (record, *_) = read_detections("out/people")
    assert {label for label, _ in record.actions[0]} == {"sit", "stand", "walk", "run", "jump"}


def test_seconds_may_begin_elsewhere(run: Run) -> None:
    text = Path("boxes.csv").read_text()
    Path("boxes.csv").write_text("".join(line.replace("people,", "people,90", 1) + "\n" for line in text.splitlines()))
    code, _, err = run("detect", "people.mp4", *GIVEN, "--no_overlay")
    assert code == 1
    assert (
        "all boxes of people in boxes.csv lie after its end at 3.00 s (the first at 900 s): is first_second=0 right"
        in err
    )
    assert run("detect", "people.mp4", *GIVEN, "--no_overlay", "--first_second", "900")[0] == 0
    assert [record.time_s for record in read_detections("out/people")] == [0.0, 1.0, 2.0]
    assert {line.split(",")[1] for line in Path("out/people/boxes.csv").read_text().splitlines()} == {
        "0900",
        "0901",
        "0902",
    }


def test_untrained_weights_are_announced(run: Run) -> None:
    options = ("--boxes", "boxes.csv", "--no_overlay", "--end", "0.3", "--out", "out")
    small = ("--fps", "30", "--sampling_rate", "1")
    code, out, err = run("detect", "people.mp4", "--model", "memvit_16x4_ava", *options, *small)
    assert code == 0
    says = "weights are random: these predictions mean nothing"
    assert f"warning: memvit_16x4_ava: {says}" in err
    assert says in out
    assert json.loads(Path("out/people/detections.jsonl").read_text().splitlines()[0])["untrained"] is True


def test_a_broken_video_is_partial(run: Run) -> None:
    damage(write_video("broken.mp4", 240, size=(96, 128)), 0.4, 0.6)
    Path("boxes.csv").write_text("broken,1,0.1,0.1,0.5,0.9\nbroken,5,0.1,0.1,0.5,0.9\n")
    code, out, err = run("detect", "broken.mp4", *GIVEN, "--no_overlay")
    assert code == 1
    assert "partial" in out
    assert "damaged, and recognised as far as they can be read: broken.mp4" in err
    assert read_summary("out/broken").status == "partial"


def test_a_live_source_is_refused(run: Run) -> None:
    code, _, err = run("detect", "rtsp://user:secret@127.0.0.1:9/camera", *GIVEN)
    assert code == 1
    assert "is live, and people are found in files only: record it and give the file" in err
    assert "secret" not in err
    assert not any(Path("out").iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*GIVEN, "--detector", LIGHT), "--boxes boxes.csv needs no detector: leave out --detector"),
        ((*GIVEN, "--detector_weights", "w.pth"), "--boxes boxes.csv needs no detector"),
        ((*MODEL, "--detector", "yolo"), "unknown detector 'yolo'; detectors are fasterrcnn_resnet50_fpn_v2"),
        (
            (*MODEL, "--detector_weights", "none.pth"),
            "there is no file none.pth with weights of fasterrcnn_resnet50_fpn_v2",
        ),
        ((*MODEL, "--boxes", "none.csv"), "none.csv: no such file"),
        ((*MODEL, "--boxes", "bad.csv"), "bad.csv:2: second 'one' is not a number"),
        (
            ("--model", "data/model", "--boxes", "boxes.csv"),
            "data/model classifies whole clips, not what each person does",
        ),
        (("--boxes", "boxes.csv"), "which model? give --model, one of mvit_16x4_ava, memvit_16x4_ava"),
        ((*GIVEN, "--labels", "few.txt"), "few.txt holds 2 labels, but the model has 5 classes"),
        ((*GIVEN, "--topk", "0"), "topk=0"),
        ((*GIVEN, "--threshold", "30"), "threshold=30"),
        ((*GIVEN, "--every", "0"), "a keyframe every 0.0 s"),
        ((*GIVEN, "--detect_fps", "-1"), "detect_fps=-1"),
        ((*GIVEN, "--start", "2", "--end", "1"), "does not come after"),
        ((*GIVEN, "--start", "100"), "beyond the end of people.mp4"),
        ((*GIVEN, "--sampling_rate", "0"), "sampling_rate=0"),
        ((*GIVEN, "--device", "abacus"), "--device abacus cannot be used here"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, options: tuple[str, ...], says: str) -> None:
    Path("few.txt").write_text("a\nb\n")
    Path("bad.csv").write_text("people,0,0.1,0.1,0.2,0.2\npeople,one,0.1,0.1,0.2,0.2\n")
    code, out, err = run("detect", "people.mp4", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
