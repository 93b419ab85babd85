from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
import torch
import torch._inductor.config

import memvit
from commands.conftest import Run
from memvit.commands.terminal import progress_bar
from memvit.online.results import ClipRecord, ResultWriter, read_predictions, read_summary
from memvit.online.runs import Progress
from tiny_models import small_model
from video.encode import write_video

MODEL = ("--model", "data/model", "--out", "out")


def test_every_video_gets_a_folder_with_its_results(run: Run) -> None:
    code, out, err = run("predict", "data/ok.mp4", "data/one.mp4", *MODEL, "--overlay")
    assert code == 0
    assert "error" not in err
    assert "warning" not in err
    for name in ("ok", "one"):
        folder = Path("out", name)
        files = {"predictions.jsonl", "predictions.csv", "timeline.png", "summary.json", "overlay.mp4"}
        assert {path.name for path in folder.iterdir()} == files
        assert read_summary(folder).status == "complete"
        assert f"data/{name}.mp4" in out
    starts = [record.start_s for record in read_predictions("out/ok")]
    assert starts == pytest.approx([i * 16 / 30 for i in range(6)], abs=1e-6)
    with av.open("out/ok/overlay.mp4") as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (72, 48, 90, 30)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.mp4", "there is no video data/missing.mp4"),
        ("empty.mp4", "data/empty.mp4 is empty"),
        ("truncated.mp4", "cannot read data/truncated.mp4"),
        ("text.mp4", "data/text.mp4"),
        ("audio.m4a", "data/audio.m4a has no video stream"),
        ("no_images", "no image and no video in data/no_images"),
        ("both", "data/both holds images (1) and videos (1)"),
    ],
)
def test_a_bad_video_is_one_line_and_exit_code_1(run: Run, name: str, says: str) -> None:
    code, out, err = run("predict", f"data/{name}", *MODEL)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    assert not Path("out").exists() or not any(Path("out").iterdir())


@pytest.mark.parametrize("name", ["cut.mkv", "damaged.mp4"])
def test_a_broken_video_gives_what_is_readable_and_says_so(run: Run, name: str) -> None:
    code, out, err = run("predict", f"data/{name}", *MODEL)
    assert code == 1
    assert err.count(f"warning: data/{name} ") == 1
    assert "partial" in out
    result = read_summary(Path("out", Path(name).stem))
    assert result.status == "partial"
    assert result.message is not None
    assert name in result.message
    assert result.num_clips >= 5


def test_one_bad_video_among_several_stops_no_other(run: Run) -> None:
    code, out, err = run("predict", "data/missing.mp4", "data/ok.mp4", "data/no_images", "data/one.mp4", *MODEL)
    assert code == 1
    assert {path.name for path in Path("out").iterdir()} == {"ok", "one"}
    assert err.strip().splitlines()[-1] == "failed: data/no_images, data/missing.mp4"
    assert out.count("complete") == 2


def test_an_unforeseen_error_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nluck")

    with monkeypatch.context() as patched:
        patched.setattr(memvit.MeMViT, "forward", broken)
        code, _, err = run("predict", "data/ok.mp4", "data/missing.mp4", *MODEL)
    assert code == 1
    assert err.splitlines()[0].startswith("error: data/ok.mp4: unexpected RuntimeError: out of luck;")
    assert "failed: data/ok.mp4, data/missing.mp4" in err


def test_images_and_folders_of_videos_are_inputs(run: Run) -> None:
    code, _, _ = run("predict", "data/images", "data/videos", "data/videos/a.mp4", *MODEL, "--image_fps", "10")
    assert code == 0
    assert {path.name for path in Path("out").iterdir()} == {"images", "a", "b", "a_2"}
    images = read_summary("out/images")
    assert (images.num_frames, images.num_clips) == (12, 3)


def test_untrained_weights_are_announced_everywhere(run: Run) -> None:
    code, out, err = run("predict", "data/one.mp4", "--model", "memvit_tiny", "--out", "out", "--end", "1")
    assert code == 0
    says = "weights are random: these predictions mean nothing"
    assert f"warning: memvit_tiny: {says}" in err
    assert says in out
    assert json.loads(Path("out/one/predictions.jsonl").read_text())["untrained"] is True
    assert json.loads(Path("out/one/summary.json").read_text())["notice"] == says
    assert Path("out/one/predictions.csv").read_text().splitlines()[1].endswith(",true,")


def test_trained_weights_are_not_announced_as_random(run: Run) -> None:
    _, out, err = run("predict", "data/one.mp4", *MODEL)
    assert "random" not in out + err
    assert "untrained" not in json.loads(Path("out/one/predictions.jsonl").read_text())


def test_labels_name_the_classes(run: Run) -> None:
    Path("names.txt").write_text("wash\ncut\npeel\nstir\npour\n")
    code, out, _ = run("predict", "data/ok.mp4", *MODEL, "--labels", "names.txt", "--topk", "2")
    assert code == 0
    records = list(read_predictions("out/ok"))
    assert {len(head) for record in records for head in record.topk} == {2}
    assert {label for record in records for label, _ in record.topk[0]} <= {"wash", "cut", "peel", "stir", "pour"}
    assert read_summary("out/ok").top[0] in out


def test_several_heads_are_named_by_their_labels_files(run: Run) -> None:
    small_model(num_classes=(2, 3)).save_pretrained("two")
    Path("verb.txt").write_text("cut\nwash\n")
    Path("noun.csv").write_text("id,key\n2,pan\n0,onion\n1,knife\n")
    labels = ("--labels", "verb.txt", "noun.csv")
    code, _, _ = run("predict", "data/one.mp4", "--model", "two", "--out", "out", *labels, "--overlay")
    assert code == 0
    (record,) = read_predictions("out/one")
    assert [{label for label, _ in head} for head in record.topk] == [{"cut", "wash"}, {"onion", "knife", "pan"}]
    rows = [line.split(",")[4:7] for line in Path("out/one/predictions.csv").read_text().splitlines()]
    assert rows[0] == ["head", "rank", "label"]
    assert [row[0] for row in rows[1:]] == ["verb"] * 2 + ["noun"] * 3 + ["action"] * 5
    assert rows[6][2] in {f"{verb} {noun}" for verb in ("cut", "wash") for noun in ("onion", "knife", "pan")}


def test_a_model_names_its_heads_itself_and_files_win(run: Run) -> None:
    small_model(num_classes=(2, 3), head_names=("verb", "noun")).save_pretrained("two")
    for name, size in (("doing", 2), ("action", 2), ("noun", 3)):
        Path(f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(size)))

    def heads(*labels: str) -> list[str]:
        options = ("--labels", *labels) if labels else ()
        assert run("predict", "data/one.mp4", "--model", "two", "--out", "out", "--topk", "1", *options)[0] == 0
        return [line.split(",")[4] for line in Path("out/one/predictions.csv").read_text().splitlines()[1:]]

    assert heads() == ["verb", "noun", "action"]
    assert heads("doing.txt", "noun.txt") == ["doing", "noun", "action"]
    assert heads("action.txt", "noun.txt") == ["verb", "noun", "action"]  # what the action is called is no head's name


def test_the_table_shows_the_action_first_and_how_far_ahead_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    names = {"class_names": (("cut", "wash"), ("onion", "pan", "tap")), "head_names": ("verb", "noun")}
    model = small_model(num_classes=(2, 3), causal=True, head_task="frames", anticipation_s=1.5, **names)
    model.save_pretrained("ahead")
    code, out, _ = run("predict", "data/ok.mp4", "--model", "ahead", "--out", "out", "--overlay")
    assert code == 0
    result = read_summary("out/ok")
    assert result.top_action is not None
    assert "top action, 1.5 s ahead" in out
    assert out.index(result.top_action) < out.index(f"verb: {result.top[0]}") < out.index(f"noun: {result.top[1]}")
    about_s = [record.about_s for record in read_predictions("out/ok")]
    assert about_s == pytest.approx([i * 16 / 30 + 0.4 + 1.5 for i in range(6)], abs=1e-6)


def test_a_compiled_model_says_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = torch.compile
    calls: list[str] = []

    def compile_fast(step: Callable[..., object], *, backend: str, **options: object) -> object:
        calls.append(backend)
        return compile(step, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_fast)
    assert run("predict", "data/ok.mp4", "data/one.mp4", *MODEL)[0] == 0
    expected = [Path(f"out/{name}/predictions.csv").read_text() for name in ("ok", "one")]
    result = run("predict", "data/ok.mp4", "data/one.mp4", *MODEL, "--compile")
    assert result[0] == 0, result[2]
    assert calls == ["inductor"]  # once for all videos
    assert [Path(f"out/{name}/predictions.csv").read_text() for name in ("ok", "one")] == expected


def test_compiling_without_a_compiler_is_one_line(run: Run) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        code, _, err = run("predict", "data/ok.mp4", *MODEL, "--compile")
    assert code == 1
    assert "install g++" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--labels", "few.txt"), "few.txt holds 2 labels, but the model has 5 classes"),
        (("--labels", "few.txt", "few.txt"), "the model has 1 head (5 classes), but labels come in 2 files"),
        (("--labels", "data/ok.mp4"), "data/ok.mp4 is no text file"),
        (("--labels", "none.txt"), "there is no labels file none.txt"),
        (("--out", "few.txt"), "few.txt cannot be a directory"),
        (("--out", "few.txt/out"), "few.txt/out cannot be a directory"),
        (("--model", "memvit_tinny"), "did you mean memvit_tiny"),
        (("--model", "memvit_16x4_ava"), "classifies boxes, which someone must find: use memvit detect"),
        (("--config", "x.yaml"), "--config x.yaml and --model data/model name two models"),
        (("--checkpoint", "x.pyth"), "data/model has its own weights"),
        (("--topk", "0"), "--topk 0"),
        (("--start", "2", "--end", "1"), "does not come after"),
        (("--start", "100"), "beyond the end of data/ok.mp4"),
        (("--sampling_rate", "0"), "sampling_rate=0"),
        (("--max_duration", "-1"), "--max_duration -1.0"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, options: tuple[str, ...], says: str) -> None:
    Path("few.txt").write_text("a\nb\n")
    code, out, err = run("predict", "data/ok.mp4", *MODEL, *options)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_no_model_at_all_is_one_line(run: Run) -> None:
    code, _, err = run("predict", "data/ok.mp4")
    assert code == 1
    assert "give --model, one of" in err


@pytest.mark.parametrize("content", ["MVIT:\n  DEPHT: 3\n", "MVIT: 3\n", "a: [\n", "MEMVIT:\n  ENABLE: yes please\n"])
def test_a_config_that_makes_no_sense_is_one_line(run: Run, content: str) -> None:
    Path("bad.yaml").write_text(content)
    code, _, err = run("predict", "data/ok.mp4", "--config", "bad.yaml")
    assert code == 1
    assert err.startswith("error: ")
    assert "bad.yaml" in err
    assert err.count("\n") == 1


def test_a_model_directory_with_damaged_weights_is_one_line(run: Run, data: Path) -> None:
    Path("half").mkdir()
    Path("half/config.json").write_bytes((data / "model/config.json").read_bytes())
    Path("half/model.safetensors").write_bytes((data / "model/model.safetensors").read_bytes()[:1000])
    code, _, err = run("predict", "data/ok.mp4", "--model", "half")
    assert code == 1
    assert "half/model.safetensors" in err
    assert err.count("\n") == 1


def test_weights_with_nan_are_refused_before_they_are_written(run: Run) -> None:
    model = small_model()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    model.save_pretrained("nan")
    code, _, err = run("predict", "data/ok.mp4", "--model", "nan", "--out", "out")
    assert code == 1
    assert "data/ok.mp4: the model's output for the clip at 0.00 s is NaN" in err
    assert not Path("out/ok").exists()


def test_a_full_disk_is_one_line(run: Run) -> None:
    Path("out/ok").mkdir(parents=True)
    Path("out/ok/predictions.jsonl").symlink_to("/dev/full")
    code, out, err = run("predict", "data/ok.mp4", *MODEL)
    assert code == 1
    assert out == ""
    assert err.startswith("error: data/ok.mp4: cannot write out/ok (No space left on device)")
    assert err.count("\n") == 1


def test_a_folder_of_images_is_not_mixed_with_its_results(run: Run, data: Path) -> None:
    code, _, err = run("predict", "data/images", "--model", "data/model", "--out", str(data))
    assert code == 1
    assert "would go among its images" in err
    assert not (data / "images" / "predictions.jsonl").exists()


@pytest.fixture
def live_url(data: Path) -> Iterator[str]:
    """A stream of 3 s that is sent at once and then neither ends nor goes on."""
    stopped = threading.Event()
    path = write_video(data / "live.ts", 90) if not (data / "live.ts").exists() else data / "live.ts"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(path.read_bytes())
            self.wfile.flush()
            stopped.wait(20)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/camera"
    stopped.set()
    server.shutdown()
    server.server_close()


def test_a_live_source_is_recognised_until_its_time_is_over(run: Run, live_url: str) -> None:
    code, out, err = run("predict", live_url, *MODEL, "--max_duration", "1", "--drop", "none")
    assert code == 0
    assert "receiving http://127.0.0.1" in err
    assert "complete" in out
    result = read_summary("out/127.0.0.1_camera")
    assert result.end_s == pytest.approx(1.067, abs=0.01)
    assert result.dropped_frames == 0


def test_a_run_that_was_cut_short_goes_on(run: Run) -> None:
    videos = ("data/ok.mp4", "data/one.mp4", "data/damaged.mp4")
    assert run("predict", *videos[:1], *MODEL)[0] == 0
    before = Path("out/ok/summary.json").stat().st_mtime_ns
    code, out, err = run("predict", *videos, *MODEL, "--resume")
    assert code == 1  # one is damaged
    assert "1 video was done already in out" in err
    assert Path("out/ok/summary.json").stat().st_mtime_ns == before
    assert all(video in out for video in videos)
    code, _, err = run("predict", *videos, *MODEL, "--resume")
    assert (code, "3 videos were done already" in err) == (1, True)
    # What is wanted besides, another model, a video that has changed, or an end that was none: all of these are done again.
    assert "done already" not in run("predict", videos[0], *MODEL, "--resume", "--overlay")[2]
    assert "done already" not in run("predict", videos[0], "--model", "memvit_nano", "--out", "out", "--resume")[2]
    run("predict", "data/one.mp4", *MODEL)
    summary = Path("out/one/summary.json")
    os.utime(summary, (0, 0))
    assert "done already" not in run("predict", "data/one.mp4", *MODEL, "--resume")[2]
    summary.write_text(summary.read_text().replace('"complete"', '"interrupted"'))
    assert "done already" not in run("predict", "data/one.mp4", *MODEL, "--resume")[2]


def test_results_of_an_earlier_run_are_not_taken_for_those_of_this_one(run: Run) -> None:
    shutil.copy("data/one.mp4", "k.mp4")
    run("predict", "k.mp4", *MODEL)
    Path("k.mp4").write_bytes(b"")
    code, out, err = run("predict", "k.mp4", *MODEL)
    assert code == 1
    assert out == ""
    assert "k.mp4 is empty" in err
    assert "warning: out/k still holds the results of an earlier run" in err
    assert read_summary("out/k").status == "complete"


def test_two_runs_do_not_write_into_one_folder(run: Run) -> None:
    with ResultWriter("out/one", ["a"]) as writer:
        code, _, err = run("predict", "data/one.mp4", *MODEL)
        assert code == 1
        assert "another process is writing its results to out/one" in err
        writer.write(ClipRecord("x", 0, 0.0, 1.0, ((("b", 1.0),),)))
    assert [record.video for record in read_predictions("out/one")] == ["x"]


def test_results_do_not_take_the_place_of_their_video(run: Run) -> None:
    Path("overlay").mkdir()
    shutil.copy("data/one.mp4", "overlay/overlay.mp4")
    code, _, err = run("predict", "overlay/overlay.mp4", "--model", "data/model", "--out", ".")
    assert (code, "would take its place" in err) == (1, True)
    assert Path("overlay/overlay.mp4").read_bytes() == Path("data/one.mp4").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8_is_written_so_that_it_can_be_read_again(run: Run) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    shutil.copy("data/one.mp4", name)
    code, _, err = run("predict", name, *MODEL, "--overlay", "--report")
    assert (code, "error" in err) == (0, False)
    folder = Path("out", Path(name).stem)
    assert read_summary(folder).video == name
    assert [record.video for record in read_predictions(folder)] == [name]
    assert "caf\\udce9.mp4" in (folder / "predictions.csv").read_text()


def test_a_pipe_is_read_once_and_from_its_beginning(run: Run) -> None:
    write_video("long.ts", 60, codec="mpeg2video")
    for options, expected in (((), 0), (("--overlay",), 1), (("--report",), 1)):
        os.mkfifo("pipe.ts")
        feeder = threading.Thread(target=_feed, args=("pipe.ts", "long.ts"), daemon=True)
        feeder.start()
        code, _, err = run("predict", "pipe.ts", *MODEL, *options)
        feeder.join(10)
        os.remove("pipe.ts")
        assert code == expected, err
        assert ("pipe.ts is a pipe and cannot be read a second time" in err) == bool(options)
    assert read_summary("out/pipe").num_frames == 60


def _feed(pipe: str, path: str) -> None:
    with contextlib.suppress(BrokenPipeError), open(pipe, "wb") as file:
        file.write(Path(path).read_bytes())


def test_float16_is_for_gpus(run: Run) -> None:
    code, _, err = run("predict", "data/one.mp4", *MODEL, "--dtype", "float16", "--device", "cpu")
    assert code == 1
    assert err == "error: --dtype float16 needs a GPU: a CPU computes in float32 or bfloat16\n"


def test_a_live_source_has_no_overlay_and_no_range(run: Run) -> None:
    for options, says in ((("--overlay",), "cannot be read a second time"), (("--start", "1"), "has no range of time")):
        code, _, err = run("predict", "http://user:secret@127.0.0.1:9/camera", *MODEL, *options)
        assert code == 1
        assert says in err
        assert "secret" not in err


def test_the_progress_bar_shows_speed_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(stderr=True, force_terminal=True, width=150)
    with progress_bar(console, "[ok]") as show:
        show(Progress("recognising", 4.0, 8.0, 120, 2.0))
        show(Progress("drawing", 1.0, 8.0, 30, 0.5))
        show(Progress("drawing", 2.0, None, 60, 1.0))
    said = capsys.readouterr().err
    assert "[ok]" in said
    assert "60 frames/s, 2.0x real time" in said
    console = Console(stderr=True, force_terminal=False)
    with progress_bar(console, "ok") as show:
        show(Progress("recognising", 4.0, 8.0, 120, 2.0))
    assert capsys.readouterr().err == ""
