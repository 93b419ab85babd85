"""The error this package shows to users, and the checks and wordings that readers share."""

import os
import re
import stat


class VideoError(ValueError):
    """A video cannot be read: one line that names the video, what is wrong with it and what to do."""


def without_password(source: str) -> str:
    """The source as messages may show it: an address comes without its password and access keys.

    >>> without_password("rtsp://admin:secret@camera/1?token=abc")
    'rtsp://admin:***@camera/1?token=***'
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source
    address, question, query = rest.partition("?")
    host, slash, path = address.partition("/")
    if "@" in path and re.search(r":[^/]*\D", host) and not host.startswith("["):
        host, slash, path = address, "", ""  # a password with a slash in it
    if "@" in host:
        login, _, server = host.rpartition("@")
        user, colon, _ = login.partition(":")
        host = f"{user}{':***' if colon else ''}@{server}"
    query = re.sub(r"(?i)((?:^|&)[^=&]*(?:pass|pwd|token|key|secret|auth|sig)[^=&]*=)[^&]*", r"\1***", query)
    return f"{scheme}{separator}{host}{slash}{path}{question}{query}"


def check_range(start_s: float, end_s: float | None) -> None:
    """Refuse a range of time that is empty or starts before the video."""
    if not 0 <= start_s < float("inf"):
        raise VideoError(f"start_s={start_s} is not a time in a video: give seconds from its beginning, 0 or more")
    if end_s is not None and not end_s > start_s:
        raise VideoError(f"end_s={end_s} does not come after start_s={start_s}: choose a later end")


def empty_range(name: str, start_s: float, end_s: float | None, last_s: float) -> str:
    """The message for a range of time that holds no frame of a video whose last frame seen is at ``last_s``."""
    if last_s < start_s:
        return f"start_s={start_s:g} is beyond the end of {name} (its last frame is at {last_s:.2f} s): start earlier"
    return f"{name} has no frame from {start_s:g} s until {end_s:g} s: choose a longer range"


def check_file(path: str) -> None:
    """Refuse what is no readable file with something in it."""
    try:
        found = os.stat(path)
        if stat.S_ISFIFO(found.st_mode):
            return  # what is read of a pipe is gone, and who opens it and goes ends it
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise VideoError(f"there is no video {path}: check the path") from None
    except IsADirectoryError:
        images = "a folder of images is opened with open_video or ImageFolderReader"
        raise VideoError(f"{path} is a folder, not a video file: {images}") from None
    except PermissionError:
        raise VideoError(f"no permission to read {path}: change its permissions (chmod +r) or your user") from None
    except OSError as error:
        raise VideoError(f"cannot open {path} ({error.strerror}): check the path and the disk") from error
    if stat.S_ISREG(found.st_mode) and not found.st_size:
        raise VideoError(f"{path} is empty (0 bytes): copy or download it again")
