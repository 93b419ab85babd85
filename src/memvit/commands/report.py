"""`memvit report`: a web page of what was recognised, in one file."""

from __future__ import annotations

from memvit.commands.terminal import progress_bar, say, stderr_console, stdout_console


def report(
    predictions: str,
    video: str,
    *,
    output: str | None = None,
    link: bool = False,
    max_width: int = 640,
    max_mb: float = 200.0,
    image_fps: float = 30.0,
) -> int:
    """Write a web page that shows what was recognised in a video while the video plays.

    The page is one HTML file with the video inside. It opens without a server and without a network. Under the video are a
    timeline of the classes, the best ones of the moment and a table; a click goes to the time. People that memvit detect
    found are drawn onto the playing video. What browsers cannot play is encoded anew, without its sound.

    Examples:
        memvit report predictions/kitchen kitchen.mp4
        memvit report detections/film film.mp4 -o film.html

    Args:
        predictions: a folder that memvit predict or memvit detect wrote, or its predictions.jsonl or detections.jsonl.
        video: the video that it was made of: a file, or a folder or tar file of images.
        output: the page. Left out: report.html in the folder of the predictions.
        link: refer to the video file instead of putting it into the page, which must then stay where it is beside the video.
        max_width: of a video that has to be encoded anew, pixels.
        max_mb: of the video in the page, megabytes, 380 at most. A larger one is encoded anew.
        image_fps: images per second of folders and tar files.
    """
    from pathlib import Path

    from memvit.report import write_report

    console = stderr_console()
    with progress_bar(console, Path(video).name) as show:
        path = write_report(
            predictions,
            video,
            output,
            link=link,
            max_width=max_width,
            max_mb=max_mb,
            image_fps=image_fps,
            on_progress=show,
        )
    say(stdout_console(), f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
    return 0
