from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memvit
from memvit.cli import COMMANDS, TRAINING_COMMANDS, Group, main
from memvit.online.results import read_predictions, read_summary
from tiny_models import small_model
from video.encode import write_video


def test_version_and_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in [(["--version"], memvit.__version__), *(([name, "--help"], name) for name in COMMANDS)]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert says in capsys.readouterr().out


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        for paragraph in capsys.readouterr().out.split("\n  -")[1:]:
            text = " ".join(paragraph.split("(type")[0].split())
            assert len(text.split()) > 3, f"memvit {name}: -{text}"


@pytest.mark.parametrize(
    "arguments", [[], ["predict"], ["predict", "a.mp4", "--modle", "x"], ["info", "a", "--fps", "x"]]
)
def test_what_cannot_be_understood_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: memvit" in capsys.readouterr().err


def test_tracebacks_come_when_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, environment, expected in (([], "", False), (["--debug"], "", True), ([], "1", True)):
        monkeypatch.setenv("MEMVIT_DEBUG", environment)
        assert main(["info", "memvit_huge", *arguments]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: unknown model")
        assert ("Traceback" in err) == expected


def test_ctrl_c_before_anything_begins_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memvit.commands.info.choose_config", interrupt)
    assert main(["info", "memvit_tiny"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_command_runs_as_a_module_and_reads_a_video(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    write_video(tmp_path / "a.mp4", 60)
    command = [sys.executable, "-m", "memvit", "predict", "a.mp4", "b.mp4", "--model", "model"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "failed: b.mp4"
    assert "Traceback" not in ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "complete" in ended.stdout
    assert read_summary(tmp_path / "predictions" / "a").num_clips == 4


def test_ctrl_c_stops_cleanly_and_says_what_was_written(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    write_video(tmp_path / "long.mp4", 30 * 60, size=(16, 16))
    write_video(tmp_path / "next.mp4", 10)
    script = Path(sys.executable).with_name("memvit")
    options = ["--model", "model", "--stride", "1", "--sampling_rate", "1", "--topk", "1"]
    process = subprocess.Popen(
        [str(script), "predict", "long.mp4", "next.mp4", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    written = tmp_path / "predictions" / "long" / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while not written.exists() or written.stat().st_size == 0:  # lines can be read while it runs
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted:" in err
    assert "written to predictions; not begun: 1 more" in err
    result = read_summary(written.parent)
    assert result.status == "interrupted"
    assert "interrupted" in out
    assert len(list(read_predictions(written))) == result.num_clips > 0
    assert (written.parent / "timeline.png").exists()
    assert not (tmp_path / "predictions" / "next").exists()


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What the command prints where it believes that somebody watches."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "memvit", *arguments],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 4096):
            parts.append(part)
    except OSError:  # so Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    process.wait(timeout=30)
    return b"".join(parts).decode()


def test_colours_are_for_terminals_and_can_be_switched_off() -> None:
    red = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert red.search(in_a_terminal("push", "model", "nowhere"))
    assert not red.search(in_a_terminal("push", "model", "nowhere", NO_COLOR="1"))
    piped = subprocess.run(
        [sys.executable, "-m", "memvit", "push", "model", "nowhere"], capture_output=True, check=False
    )
    assert b"\x1b" not in piped.stdout + piped.stderr


def test_every_help_shows_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    names: list[list[str]] = [[], *([name] for name in (*COMMANDS, *TRAINING_COMMANDS))]
    for name, command in COMMANDS.items():
        names += [[name, inner] for inner in command.commands] if isinstance(command, Group) else []
    for arguments in names:
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        _, _, examples = capsys.readouterr().out.partition("\nExamples:\n")
        lines = examples.rstrip("\n").split("\n")
        assert lines, arguments
        assert all(line.startswith(f"  memvit {' '.join(arguments)}") for line in lines), (arguments, lines)
