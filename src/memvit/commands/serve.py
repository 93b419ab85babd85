"""`memvit serve`: a page in the browser on which videos are recognised."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import socket
from typing import Literal

from memvit.commands.models import choose_device, choose_dtype, choose_model
from memvit.commands.process import give_back_freed_memory, keep_freed_memory, share_cores
from memvit.commands.terminal import log_with_times, say, stderr_console

PASSWORD = "MEMVIT_PASSWORD"
PACKAGES = frozenset({"fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"})
SHUTDOWN_S = 2


def serve(
    *,
    model: str | None = None,
    config: str | None = None,
    checkpoint: str | None = None,
    labels: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: list[str] | None = None,
    allow_sources: bool = False,
    max_upload_mb: float = 2000.0,
    max_duration: float = 7200.0,
    max_running: int = 4,
    max_waiting: int = 16,
    keep_minutes: float = 30.0,
    folder: str | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    fps: float | None = None,
    sampling_rate: int | None = None,
    stride: int | None = None,
    compile: bool = False,
) -> int:
    """Open a page in the browser that recognises videos while you watch: dropped files, cameras and live streams.

    The page shows the classes over time beside the video, how far memory reaches back, and if wanted what the model says
    without it. Results can be downloaded. Visitors share one model and each have a memory of their own; what runs at the same
    time goes through the model together. Videos and results are kept in temporary files, and removed.

    Only this machine is listened to unless --host says otherwise. Visitors then need a password if the environment variable
    MEMVIT_PASSWORD has one, with any user name; use a proxy with HTTPS, without which browsers give no camera either.
    /healthz and /metrics (Prometheus) tell how the server is.

    Examples:
        memvit serve --model runs/kitchen/version_0/model
        memvit serve --model memvit_16x4.k400 --host 0.0.0.0 --allowed_hosts videos.example.org

    Args:
        model: a preset (random weights, for trials), published weights such as memvit_16x4.k400, a directory that
            `memvit convert` or `save_pretrained` wrote, a checkpoint of `memvit fit`, or a repository of the Hugging Face Hub.
        config: instead of a model, a YAML config of the authors' release.
        checkpoint: a .pyth checkpoint of the authors' release, for the config or for a preset.
        labels: class names, a file per head, as for memvit predict.
        host: address to listen on; 0.0.0.0 is all networks.
        port: to listen on; 0 takes a free one.
        allowed_hosts: names that visitors may use for the server. Left out: on this machine only, its own names; else all.
        allow_sources: visitors may name addresses and cameras, which the server opens. It then sees its own network for them.
        max_upload_mb: of a video, megabytes.
        max_duration: of a video, seconds; live streams end after it.
        max_running: videos recognised at a time.
        max_waiting: videos that may wait for their turn.
        keep_minutes: how long videos and results are kept after their end.
        folder: where temporary files go. Left out: the system's own place for them.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        dtype: number format of the forward pass.
        fps: frame rate that the sampling rate refers to. Left out: the model's own.
        sampling_rate: a clip takes every so-many-th frame. Left out: the model's own.
        stride: sampled frames from the start of a clip to the start of the next. Left out: a clip's length.
        compile: compile the model first. This takes a minute or more, and needs a C++ compiler.
    """
    share_cores()
    keep_freed_memory()
    try:
        import uvicorn

        from memvit.app import Limits, Service, create_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ValueError(f"memvit serve needs {error.name}: pip install 'memvit[app]'") from error

    console = stderr_console()
    numbers = {
        "max_upload_mb": max_upload_mb,
        "max_duration": max_duration,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "keep_minutes": keep_minutes,
    }
    for option, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"--{option} {number:g} lets nothing through: give a number above 0")
    limits = Limits(
        upload_bytes=round(max_upload_mb * 1e6),
        duration_s=max_duration,
        running=max_running,
        waiting=max_waiting,
        keep_s=60 * keep_minutes,
    )
    if folder is not None and not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder} for temporary files: create it or choose another")
    password = os.environ.get(PASSWORD) or None
    with _listen(host, port) as listener:  # a port that is taken is known before a model is loaded
        target = choose_device(device)
        number_format = choose_dtype(dtype, target)
        chosen = choose_model(model, config, checkpoint)
        head_names = chosen.name_classes(labels)
        service = Service(
            chosen.model.to(target),
            chosen.name,
            untrained=chosen.untrained,
            head_names=head_names,
            limits=limits,
            sources=allow_sources,
            dtype=number_format,
            compile=compile,
            folder=folder,
            on_idle=give_back_freed_memory,
            fps=fps,
            sampling_rate=sampling_rate,
            stride=stride,
        )
        is_local = _is_loopback(host)
        hosts = allowed_hosts or (["127.0.0.1", "localhost", "::1", host] if is_local else ["*"])
        app = create_app(service, password=password, allowed_hosts=hosts)
        if not is_local and password is None:
            say(
                console,
                f"warning: whoever reaches {host} can use this server; set {PASSWORD} to ask for a password",
                "yellow",
            )
        shown = f"[{host}]" if ":" in host else host
        say(console, f"open http://{shown}:{listener.getsockname()[1]} in a browser; Ctrl-C ends the server")
        settings = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=SHUTDOWN_S
        )
        log = logging.getLogger("uvicorn.error")

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                """Lets visitors go first: connections that follow a recognition would keep it waiting, and be reported."""
                service.end_visits()
                log.setLevel(logging.CRITICAL)
                await super().shutdown(sockets)

        with log_with_times():
            log.setLevel(logging.WARNING)
            Server(settings).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: the address is none of this machine, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: give a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: no such address ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port or --host"
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
