"""The page of a report: one HTML file that holds everything it needs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from memvit.online.results import UNTRAINED_NOTICE, cannot_write
from memvit.online.runs import OnProgress
from memvit.report.film import MEGABYTE, Film, check_playable, open_film, prepare_film
from memvit.report.records import Findings, read_findings
from memvit.video import ImageFolderReader

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
DEFAULT_MAX_WIDTH = 640
DEFAULT_MAX_MB = 200.0
BROWSER_MAX_MB = 380.0  # a third more as text, and browsers refuse strings above 512 MB

_CHUNK = 3 * 2**18  # bytes; three of them are four characters
_OVERRUN_S = 2.0  # predictions may end so much later than the video


def write_report(
    predictions: str | os.PathLike[str],
    video: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    link: bool = False,
    max_width: int = DEFAULT_MAX_WIDTH,
    max_mb: float = DEFAULT_MAX_MB,
    image_fps: float = 30.0,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Writes a page that shows what was recognised in a video while the video plays.

    The page is one file. It asks no other machine for anything and opens without a server. It appears whole or not at all.

    Args:
        predictions: `predictions.jsonl`, `detections.jsonl`, or the folder that holds one.
        video: the video they are of: a file, or a folder or tar file of images.
        output: the page; `report.html` beside the predictions where None.
        link: refer to the video instead of putting it into the page.
        max_width: of a video that has to be encoded anew, pixels.
        max_mb: of the video in the page, megabytes; one that is larger is encoded anew.
        image_fps: images per second of folders and tar files.
        name: what the video is called, where its file is called something else.
        on_progress: called now and then.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: there are no predictions.
        ValueError: damaged predictions, or of another video; a video that cannot be read or is too large; an option out of
            range; or the page cannot be written.
    """
    if max_width < 16:
        raise ValueError(f"max_width={max_width}: give 16 pixels or more")
    if not 0 < max_mb <= BROWSER_MAX_MB:
        raise ValueError(
            f"max_mb={max_mb:g}: give more than 0 and, as browsers open no larger pages, {BROWSER_MAX_MB:g} at most"
        )
    findings = read_findings(predictions)
    beside = Path(predictions) if Path(predictions).is_dir() else Path(predictions).parent
    target = beside / REPORT_FILE if output is None else Path(output)
    _check_target(target, [Path(predictions), Path(video)])
    notes = _compare(findings, video, name or Path(video).name, image_fps)
    if link:
        film = _linked(video, image_fps)
        _write(target, _page(findings, film, notes, _address(film.path, target.parent)), None)
        return target
    is_whole = findings.summary is not None and findings.summary.status == "complete" and not notes
    with _scratch(target.parent) as folder:
        film = prepare_film(
            video,
            folder,
            max_width=max_width,
            max_bytes=int(max_mb * MEGABYTE),
            image_fps=image_fps,
            is_whole=is_whole,
            on_progress=on_progress,
        )
        _write(target, _page(findings, film, notes, None), film)
    return target


def _check_target(target: Path, sources: Sequence[Path]) -> None:
    if target.is_dir():
        raise ValueError(f"{target} is a folder: give the name of an HTML file, such as {target / REPORT_FILE}")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent} for {target.name}: create it or choose another place")
    if any(target.exists() and source.exists() and target.samefile(source) for source in sources):
        raise ValueError(f"{target} would be overwritten, and the report is made of it: choose another name")


def _compare(findings: Findings, video: str | os.PathLike[str], given: str, image_fps: float) -> list[str]:
    """What viewers should know where predictions and video do not fit quite well.

    Raises:
        ValueError: they do not fit at all; or the video cannot be read.
    """
    with open_film(video, image_fps) as source:
        duration_s = source.info.duration_s
    name = Path(findings.video).name or findings.video
    if duration_s and findings.end_s > duration_s * 1.05 + _OVERRUN_S:
        raise ValueError(
            f"{video} ends at {duration_s:.1f} s, but the predictions, of {findings.video}, go on until {findings.end_s:.1f} s: "
            "give the video that they were made of"
        )
    notes = []
    if name != given:
        text = f"The predictions were made of {name}, the video is {given}."
        logger.warning(
            "%s was not what these predictions were made of (%s): see that it is the same video", video, name
        )
        notes.append(text)
    if findings.summary is not None and findings.summary.message:
        notes.append(f"Recognition was {findings.summary.status}: {findings.summary.message}")
    return notes


def _linked(video: str | os.PathLike[str], image_fps: float) -> Film:
    with open_film(video, image_fps) as source:
        if isinstance(source, ImageFolderReader):
            raise ValueError(f"{video} is no video file, and a page can link to files only: leave out --link")
        playable, duration_s = check_playable(source), source.info.duration_s
    if playable.media_type is None:
        logger.warning(
            "%s may not play in browsers, which take H.264, VP9 or AV1: leave out --link to encode it anew", video
        )
    return Film(Path(video), playable.media_type or "", duration_s)


def _address(path: Path, folder: Path) -> str:
    """Where a page in a folder finds a file."""
    try:
        relative = Path(os.path.relpath(path.resolve(), folder.resolve()))
    except ValueError:  # another drive
        return path.resolve().as_uri()
    return quote(os.fsencode(relative.as_posix()))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for a video on its way, on the disk that the page goes to."""
    try:
        made = tempfile.TemporaryDirectory(prefix=".report-", dir=folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with made as name:
        yield Path(name)


def _page(findings: Findings, film: Film, notes: Sequence[str], address: str | None) -> tuple[str, str]:
    """The page before and after the video's data."""
    summary = findings.summary
    data = {
        "video": Path(findings.video).name or findings.video,
        "model": summary.model if summary is not None else "",
        "notice": UNTRAINED_NOTICE if findings.untrained else "",
        "notes": [*notes, *(note for note in film.notes if note not in "".join(notes))],
        "duration": round(max(findings.end_s, film.duration_s or 0.0), 3),
        "address": address,
        "type": film.media_type,
        "sections": [section.plain() for section in findings.sections],
        "boxes": findings.boxes,
    }
    files = resources.files("memvit.report")
    names = ("report.html", "theme.css", "report.css", "report.js")
    page, theme, own_style, script = (files.joinpath(name).read_text("utf-8") for name in names)
    style = theme + own_style
    filled = Template(page).substitute(
        title=html.escape(_text(str(data["video"]).replace("\0", ""))),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_json(data),
        film="\0",
    )
    before, after = filled.split("\0")
    return before, after


def _hash(text: str) -> str:
    """What a content security policy calls the only script, or style, that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON in which nothing can end the element around it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\0\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _text(text)


def _text(name: str) -> str:
    """What can be written as UTF-8; names of files may hold bytes that are no text."""
    return name.encode("utf-8", "replace").decode()


def _write(target: Path, page: tuple[str, str], film: Film | None) -> None:
    """Writes the page, whole or not at all, with the video's data inside."""
    before, after = page
    part = target.with_name(f"{target.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(before.encode())
            if film is not None:
                file.write(f"data:{film.media_type};base64,".encode())
                with open(film.path, "rb") as source:
                    while chunk := source.read(_CHUNK):
                        file.write(base64.b64encode(chunk))
            file.write(after.encode())
        os.replace(part, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
