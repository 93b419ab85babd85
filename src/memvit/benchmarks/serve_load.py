"""Whether `memvit serve` stands many visitors at once, half of whom bring files that are no videos.

    python -m memvit.benchmarks.serve_load --uploads 50 --at_once 8 --out serve_load.json

Starts the command as its own process, uploads, follows every recognition as the page does, waits until the results have
expired, and says how each upload ended, what the server left on the disk, and how its resident memory has changed. Memory is
compared with that after one video: what PyTorch and Matplotlib load with the first one is no leak.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from memvit.video.sample import make_sample_video

KEEP_S = 1.0
START_TIMEOUT_S = 120.0
TIMEOUT_S = 600.0
SETTLE_S = 60.0

Expected = dict[str, str]
"""How each kind of file must end."""

EXPECTED: Expected = {
    "video": "complete",
    "text": "refused",
    "empty": "refused",
    "headless": "refused",  # the second half of a file
    "cut": "partial",
}


@dataclass(frozen=True)
class LoadResult:
    """What came of it.

    Attributes:
        ends: how many uploads of each kind ended how.
        unexpected: sentences about those that ended otherwise than they should.
        num_clips: recognised.
        elapsed_s: from the first upload to the last end.
        memory_before, memory_after: resident bytes of the server.
        leftover: files of the server afterwards.
        exit_code: of the server, asked to end.
        log: what the server wrote.
    """

    ends: dict[str, dict[str, int]]
    unexpected: list[str]
    num_clips: int
    elapsed_s: float
    memory_before: int
    memory_after: int
    leftover: list[str]
    exit_code: int
    log: str

    @property
    def ended_well(self) -> bool:
        """Whether the server closed when it was asked to. Uvicorn then ends as the signal would have ended it."""
        return self.exit_code in (0, -signal.SIGTERM)

    @property
    def memory_growth(self) -> float:
        """By what share of what it was before resident memory has grown."""
        return self.memory_after / self.memory_before - 1


def load(
    model: str, *, num_uploads: int, at_once: int, video_s: float = 6.0, folder: str | os.PathLike[str] | None = None
) -> LoadResult:
    """Starts a server, loads it, ends it.

    Args:
        model: as for `memvit serve`.
        num_uploads: every other one is no video, or a damaged one.
        at_once: uploads at a time.
        video_s: length of the videos.
        folder: for all files; a temporary one where None.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        files, server_folder = make_files(Path(made, "files"), video_s), Path(made, "server")
        server_folder.mkdir()
        with _serving(model, server_folder, at_once) as (url, server, log):
            visit(url, files["video"])
            before = _settled_memory(url)
            kinds = [
                ("video", "text", "video", "empty", "video", "headless", "video", "cut")[i % 8]
                for i in range(num_uploads)
            ]
            began_s = time.monotonic()
            with ThreadPoolExecutor(at_once) as pool:
                visits = list(pool.map(lambda kind: visit(url, files[kind]), kinds))
            elapsed_s = time.monotonic() - began_s
            _wait(lambda: not _kept(url), KEEP_S + SETTLE_S)
            after = _settled_memory(url)
            leftover = [str(path.relative_to(server_folder)) for path in server_folder.rglob("*") if path.is_file()]
            server.send_signal(signal.SIGTERM)
            code = server.wait(30)
            leftover += [str(path.relative_to(server_folder)) for path in server_folder.rglob("*")]
            text = log.read_text(encoding="utf-8")
    ends: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for kind, (end, _, _) in zip(kinds, visits, strict=True):
        ends[kind][end] += 1
    unexpected = [
        f"{kind}: {end} ({message})"
        for kind, (end, message, _) in zip(kinds, visits, strict=True)
        if end != EXPECTED[kind] or (end != "complete" and not message)
    ]
    return LoadResult(
        ends={kind: dict(counts) for kind, counts in ends.items()},
        unexpected=unexpected,
        num_clips=sum(num_clips for _, _, num_clips in visits),
        elapsed_s=elapsed_s,
        memory_before=before,
        memory_after=after,
        leftover=leftover,
        exit_code=code,
        log=text,
    )


def make_files(folder: Path, video_s: float) -> dict[str, Path]:
    """One file of each kind in `EXPECTED`."""
    folder.mkdir()
    names = {
        "video": "video.mp4",
        "text": "text.mp4",
        "empty": "empty.mp4",
        "headless": "headless.mp4",
        "cut": "cut.mkv",
    }
    files = {kind: folder / name for kind, name in names.items()}
    make_sample_video(files["video"], duration_s=video_s)
    files["text"].write_text("no video at all\n" * 1000)
    files["empty"].write_bytes(b"")
    data = files["video"].read_bytes()
    files["headless"].write_bytes(data[len(data) // 2 :])
    make_sample_video(files["cut"], duration_s=video_s)
    data = files["cut"].read_bytes()
    files["cut"].write_bytes(data[: 6 * len(data) // 10])
    return files


def visit(url: str, file: Path) -> tuple[str, str, int]:
    """Uploads a file and follows it to its end.

    Returns:
        How it ended ("refused", or a state), the sentence about it, and how many clips came.
    """
    request = Request(
        f"{url}/api/jobs?name={file.name}", file.read_bytes(), {"Content-Type": "application/octet-stream"}
    )
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            id = json.load(answer)["id"]
    except HTTPError as error:
        body = error.read()
        return ("refused" if error.code == 422 else f"status {error.code}"), json.loads(body)["error"], 0
    num_clips, state = 0, {}
    with urlopen(f"{url}/api/jobs/{id}/events", timeout=TIMEOUT_S) as answer:
        event = ""
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event == "clip":
                num_clips += 1
            elif name == "data":
                state = json.loads(value)
    return state["state"], state["message"] or "", num_clips


@contextlib.contextmanager
def _serving(model: str, folder: Path, at_once: int) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    command = [sys.executable, "-m", "memvit", "serve", "--model", model, "--port", "0", "--folder", os.fspath(folder)]
    command += ["--keep_minutes", str(KEEP_S / 60), "--max_waiting", str(2 * at_once)]
    log = folder.parent / "log"
    with open(log, "w", encoding="utf-8") as file:
        server = subprocess.Popen(command, stderr=file, text=True)
    try:
        found: list[str] = []

        def has_started() -> bool:
            assert server.poll() is None, log.read_text(encoding="utf-8")
            found[:] = re.findall(r"open (http://\S+)", log.read_text(encoding="utf-8"))
            return bool(found)

        _wait(has_started, START_TIMEOUT_S)
        yield found[0], server, log
    finally:
        server.kill()
        server.wait()


def _metrics(url: str) -> dict[str, float]:
    with urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def _kept(url: str) -> float:
    return sum(value for name, value in _metrics(url).items() if name.startswith("memvit_jobs{"))


def _settled_memory(url: str) -> int:
    """Resident bytes once it has not changed for a second."""
    _wait(lambda: not _kept(url), KEEP_S + SETTLE_S)
    last = -1.0
    while True:
        now = _metrics(url)["process_resident_memory_bytes"]
        if abs(now - last) < 2**20:
            return int(now)
        last = now
        time.sleep(1)


def _wait(condition: Callable[[], object], timeout_s: float) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"the server did not come so far within {timeout_s:.0f} s")
        time.sleep(0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it and prints what came of it; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memvit_tiny")
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--at_once", type=int, default=8)
    parser.add_argument("--video_s", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    result = load(given.model, num_uploads=given.uploads, at_once=given.at_once, video_s=given.video_s)
    for kind, ends in result.ends.items():
        print(f"{kind:10} {', '.join(f'{number} {end}' for end, number in ends.items())}")
    print(f"{result.num_clips} clips in {result.elapsed_s:.1f} s")
    print(
        f"resident memory {result.memory_before / 2**20:.0f} MiB before, {result.memory_after / 2**20:.0f} MiB after "
        f"({100 * result.memory_growth:+.1f} %); {len(result.leftover)} files left; exit code {result.exit_code}"
    )
    for sentence in result.unexpected:
        print(f"unexpected: {sentence}")
    if given.out is not None:
        given.out.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    is_well = not result.unexpected and not result.leftover and result.memory_growth <= 0.1 and result.ended_well
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
