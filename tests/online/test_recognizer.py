"""Online recognition gives what offline prediction gives, however the frames come."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from memvit import MeMViT, OnlineRecognizer
from memvit.online import ClipPrediction
from memvit.video import ClipTransform, Frame, TimeSampler, VideoReader
from memvit.video.writer import VideoWriter
from tiny_models import TWO_BLOCKS, small_model

TESTS = Path(__file__).parent.parent


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def recognizer(model: MeMViT | None = None, **options: object) -> OnlineRecognizer:
    """Clips of 4 frames, 2/15 s apart: 0.53 s each."""
    return OnlineRecognizer(model or small_model(), fps=30, sampling_rate=4, **options)  # type: ignore[arg-type]


def all_logits(predictions: list[ClipPrediction]) -> np.ndarray:
    return np.stack([p.logits[0] for p in predictions])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.7 s at 25 frames/s, which is no multiple of the sampling."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    with VideoWriter(path, 56, 40, 25) as writer:
        for i in range(92):
            writer.write(noise(i // 5))
    return path


def test_a_file_as_a_stream_gives_exactly_what_offline_prediction_gives(video: Path) -> None:
    model = small_model()
    config = model.config
    online = list(recognizer(model).run(VideoReader(video)))

    frames = list(VideoReader(video))
    sampler: TimeSampler[Frame] = TimeSampler(4 / 30)
    shown = [f for frame in frames for _, f in sampler.push(frame)] + [f for _, f in sampler.finish()]
    transform = ClipTransform(config.crop_size, (0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
    pixels = [transform.frame(frame) for frame in shown]
    memory, offline = None, []
    with torch.inference_mode():
        for start in range(0, len(pixels), 4):
            clip = pixels[start : start + 4]
            clip += [clip[-1]] * (4 - len(clip))
            logits, memory = model(transform.clip(clip)[None], memory)
            offline.append(logits[0].numpy())
    assert len(pixels) == 28
    np.testing.assert_array_equal(all_logits(online), np.stack(offline))


def test_pushing_frames_and_running_a_source_agree(video: Path) -> None:
    pushing = recognizer()
    pushed = [p for frame in VideoReader(video) for p in pushing.push(frame)] + pushing.finish()
    ran = list(recognizer().run(VideoReader(video)))
    np.testing.assert_array_equal(all_logits(pushed), all_logits(ran))
    assert [(p.clip, p.start_s, p.end_s) for p in pushed] == [(p.clip, p.start_s, p.end_s) for p in ran]
    assert pushing.streams == []


def test_a_camera_may_be_read_into_one_array_again_and_again() -> None:
    model, buffer = small_model(), np.empty((32, 32, 3), np.uint8)
    copied, reused = recognizer(model), recognizer(model)
    wanted = [p for i in range(64) for p in copied.push(noise(i, 32, 32))]
    found = []
    for i in range(64):
        buffer[:] = noise(i, 32, 32)
        found += reused.push(buffer)
    np.testing.assert_array_equal(all_logits(found), all_logits(wanted))


def test_a_video_that_is_left_early_does_not_touch_the_next(video: Path) -> None:
    online = recognizer()
    expected = list(online.run(VideoReader(video)))
    for prediction in online.run(VideoReader(video)):
        if prediction.clip == 2:
            break
    state = online.state_dict()
    np.testing.assert_array_equal(all_logits(list(online.run(VideoReader(video)))), all_logits(expected))
    online.load_state_dict(state)  # what was left may still be gone on with
    np.testing.assert_array_equal(all_logits(list(online.run(VideoReader(video)))), all_logits(expected[3:]))


def test_clips_follow_one_another_in_time() -> None:
    online = recognizer()
    predictions = [p for i in range(40) for p in online.push(noise(i))] + online.finish()
    period = 4 / 30
    assert [p.start_s for p in predictions] == pytest.approx([0, 4 * period, 8 * period])
    assert [p.end_s for p in predictions] == pytest.approx([4 * period, 8 * period, 10 * period])


@pytest.mark.parametrize(("stride", "starts"), [(2, [0, 2, 4, 6, 8]), (4, [0, 4, 8]), (6, [0, 6]), (1, list(range(8)))])
def test_stride_says_where_clips_start_and_no_frame_is_left_out(stride: int, starts: list[int]) -> None:
    online = recognizer(stride=stride)
    predictions = [p for i in range(41) for p in online.push(noise(i))] + online.finish()  # 11 sampled frames
    assert [round(p.start_s * 30 / 4) for p in predictions] == starts
    assert [round(p.end_s * 30 / 4) for p in predictions] == [min(s + 4, 11) for s in starts]


def test_one_frame_makes_a_clip() -> None:
    online = recognizer()
    assert online.push(noise(0)) == []
    (prediction,) = online.finish()
    assert np.isfinite(prediction.logits[0]).all()
    assert online.finish() == []


@pytest.mark.parametrize("max_batch_size", [1, 2, 8])
def test_streams_in_one_batch_give_what_each_gives_alone(max_batch_size: int) -> None:
    model = small_model()
    together = recognizer(model, max_batch_size=max_batch_size)
    collected: dict[object, list[ClipPrediction]] = {"a": [], "b": [], "c": []}
    for start in range(0, 60, 20):
        frames = {name: [(noise(1000 * s + i), None) for i in range(start, start + 20)] for s, name in enumerate("abc")}
        for prediction in together.push_many(frames):
            collected[prediction.stream].append(prediction)
    for prediction in together.finish():
        collected[prediction.stream].append(prediction)
    for s, name in enumerate("abc"):
        alone = recognizer(model)
        expected = [p for i in range(60) for p in alone.push(noise(1000 * s + i))] + alone.finish()
        np.testing.assert_allclose(all_logits(collected[name]), all_logits(expected), rtol=0, atol=1e-5)


def test_clips_of_a_stream_stay_in_order_when_sizes_differ() -> None:
    model = small_model()
    together = recognizer(model, keep_aspect=True)
    sizes = {"wide": [(40, 56)] * 40, "changing": [(48, 40)] * 18 + [(40, 56)] * 22}
    frames = {name: [(noise(i, *size), None) for i, size in enumerate(each)] for name, each in sizes.items()}
    predictions = together.push_many(frames) + together.finish()
    for name, pairs in frames.items():
        alone = recognizer(model, keep_aspect=True)
        expected = alone.push_many({name: pairs}) + alone.finish()
        ours = [p for p in predictions if p.stream == name]
        assert [(p.clip, p.start_s) for p in ours] == [(p.clip, p.start_s) for p in expected]
        np.testing.assert_allclose(all_logits(ours), all_logits(expected), rtol=0, atol=1e-5)


def test_a_stream_does_not_see_the_one_before_it(video: Path) -> None:
    online = recognizer()
    first = list(online.run(VideoReader(video)))
    second = list(online.run(VideoReader(video)))
    np.testing.assert_array_equal(all_logits(first), all_logits(second))


RESUME = """
import sys
import numpy as np
from online.test_recognizer import all_logits, noise, recognizer

online = recognizer(stride=3)
online.load(sys.argv[1])
predictions = [p for i in range(37, 80) for p in online.push(noise(i), stream="door")] + online.finish()
np.save(sys.argv[2], all_logits(predictions))
"""


def test_a_saved_stream_goes_on_in_another_process_as_if_never_interrupted(tmp_path: Path) -> None:
    whole = recognizer(stride=3)
    expected = [p for i in range(80) for p in whole.push(noise(i), stream="door")] + whole.finish()
    online = recognizer(stride=3)
    before = [p for i in range(37) for p in online.push(noise(i), stream="door")]
    online.save(tmp_path / "state.pt")
    arguments = [str(tmp_path / "state.pt"), str(tmp_path / "after.npy")]
    subprocess.run([sys.executable, "-c", RESUME, *arguments], check=True, cwd=TESTS)
    resumed = np.concatenate([all_logits(before), np.load(tmp_path / "after.npy")])
    np.testing.assert_array_equal(resumed, all_logits(expected))
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_a_run_stopped_midway_goes_on_from_its_state(video: Path, tmp_path: Path) -> None:
    expected = list(recognizer().run(VideoReader(video)))
    online = recognizer()
    run = online.run(VideoReader(video), stream="file")
    before = [next(run) for _ in range(3)]
    online.save(tmp_path / "state.pt")
    run.close()
    resumed = recognizer()
    resumed.load(tmp_path / "state.pt")
    assert resumed.position_s("file") == pytest.approx(12 * 4 / 30)
    after = list(resumed.run(VideoReader(video), stream="file"))
    np.testing.assert_array_equal(all_logits(before + after), all_logits(expected))
    assert [p.clip for p in before + after] == list(range(7))


def test_a_source_that_starts_late_keeps_its_times(video: Path) -> None:
    predictions = list(recognizer().run(VideoReader(video, start_s=1.3)))
    assert [p.start_s for p in predictions] == pytest.approx([1.3 + i * 16 / 30 for i in range(5)])


def test_states_of_another_recognizer_or_model_are_refused(tmp_path: Path) -> None:
    online = recognizer()
    for i in range(20):
        online.push(noise(i))
    online.save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="make it with the same"):
        recognizer(stride=2).load(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"another model|of shape"):
        recognizer(small_model(memory_length=3)).load(tmp_path / "state.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short"):
        recognizer().load(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match="no such recognizer state"):
        recognizer().load(tmp_path / "none.pt")


def test_a_bad_frame_is_refused_and_nothing_is_lost() -> None:
    online, expected = recognizer(), recognizer()
    good = [(noise(i), i / 30) for i in range(30)]
    for bad in (noise(0).astype(np.float32), noise(0)[..., :2], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8 RGB"):
            online.push_many({"a": good, "b": [(bad, 0.0)]})
    with pytest.raises(ValueError, match="in order of time"):
        online.push_many({"a": [*good, (noise(3), 0.2)]})
    ours = online.push_many({"a": good}) + online.finish("a")
    theirs = expected.push_many({"a": good}) + expected.finish()
    np.testing.assert_array_equal(all_logits(ours), all_logits(theirs))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_clips_with_nan_are_refused_and_leave_the_memory_as_it_was(value: float) -> None:
    online, expected = recognizer(), recognizer()
    clips = [torch.randn(3, 4, 32, 32) for _ in range(3)]
    ours = [online.push_clip(clips[0])]
    broken = clips[1].clone()
    broken[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        online.push_clip(broken)
    ours += [online.push_clip(clip) for clip in clips[1:]]
    theirs = [expected.push_clip(clip) for clip in clips]
    np.testing.assert_array_equal(all_logits(ours), all_logits(theirs))
    assert [p.start_s for p in ours] == [p.start_s for p in theirs]


def test_wrong_clips_are_refused() -> None:
    online = recognizer()
    with pytest.raises(ValueError, match="clip must be float"):
        online.push_clip(torch.zeros(3, 4, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="clip must be float"):
        online.push_clip(torch.zeros(1, 3, 4, 32, 32))
    online.push(noise(0))
    online.push(noise(1), time_s=0.2)
    with pytest.raises(ValueError, match="finish"):
        online.push_clip(torch.zeros(3, 4, 32, 32))


def test_after_a_long_gap_the_clip_begins_anew_and_memory_stays() -> None:
    online = recognizer(max_gap_s=2.0)
    times = [i / 10 for i in range(9)] + [60 + i / 10 for i in range(9)]
    predictions = [p for t in times for p in online.push(noise(int(t * 10)), t)] + online.finish()
    assert [p.start_s for p in predictions] == pytest.approx([0, 4 * 4 / 30, 60, 60 + 4 * 4 / 30])
    assert [p.end_s for p in predictions][1] == pytest.approx(7 * 4 / 30)


def test_a_change_of_size_starts_a_clip_of_the_new_size_with_fresh_memory() -> None:
    model = small_model()
    online = recognizer(model, keep_aspect=True)
    predictions = [p for i in range(18) for p in online.push(noise(i))]
    predictions += [p for i in range(40) for p in online.push(noise(i, 56, 40))] + online.finish()
    fresh = recognizer(model, keep_aspect=True)
    alone = [p for i in range(40) for p in fresh.push(noise(i, 56, 40))] + fresh.finish()
    assert len(predictions) >= 4
    assert all(np.isfinite(p.logits[0]).all() for p in predictions)
    assert len(alone) <= len(predictions)


def test_scores_are_softmax_or_sigmoid_and_sorted() -> None:
    (prediction,) = [
        recognizer(small_model(class_names=(("a", "b", "c", "d", "e"),))).push_clip(torch.randn(3, 4, 32, 32))
    ]
    assert prediction.scores[0].sum() == pytest.approx(1.0)
    (best,) = prediction.topk(3)
    assert [score for _, score in best] == sorted(prediction.scores[0])[::-1][:3]
    assert best[0][0] == "abcde"[prediction.logits[0].argmax()]
    several = recognizer(small_model(num_classes=(3, 4), activation="sigmoid", head_task="frames")).push_clip(
        torch.randn(3, 4, 32, 32)
    )
    assert [s.shape for s in several.scores] == [(2, 3), (2, 4)]
    assert several.scores[1] == pytest.approx(1 / (1 + np.exp(-several.logits[1])))
    assert [len(head) for head in several.topk(9)] == [3, 4]


def test_low_precision_stays_close() -> None:
    model = small_model()
    clips = [torch.randn(3, 4, 32, 32) for _ in range(3)]
    full, low = recognizer(model), recognizer(model, dtype=torch.bfloat16)
    for clip in clips:
        a, b = full.push_clip(clip), low.push_clip(clip)
        assert b.scores[0] == pytest.approx(a.scores[0], abs=0.1)


@pytest.mark.parametrize("option", [{"stride": 0}, {"fps": 0}, {"sampling_rate": -1}, {"max_batch_size": 0}])
def test_options_below_one_are_refused(option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        OnlineRecognizer(small_model(), **option)  # type: ignore[arg-type]


def test_models_that_need_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="boxes"):
        OnlineRecognizer(small_model(head_task="boxes"))


def test_two_hours_take_no_more_memory_than_five_minutes() -> None:
    """7200 s as a camera gives them, frame by frame at the sampled rate; every clip with full memory."""
    online = recognizer(small_model(num_frames=16, patch_stride=(4, 8, 8), kv_stride_adaptive=(1, 2, 2), **TWO_BLOCKS))
    frames = [noise(i, 32, 32) for i in range(16)]
    process, resident = psutil.Process(), {}
    num_predictions = 0
    for i in range(7200 * 30 // 4):
        num_predictions += len(online.push(frames[i % 16], i * 4 / 30))
        if i % 1000 == 0 or i * 4 / 30 == 300:
            resident[i * 4 / 30] = process.memory_info().rss
    assert num_predictions + len(online.finish()) == math.ceil(7200 * 30 / 4 / 16)
    at_five_minutes = max(size for t, size in resident.items() if t <= 310)
    at_the_end = list(resident.values())[-1]
    assert at_the_end <= 1.05 * at_five_minutes
