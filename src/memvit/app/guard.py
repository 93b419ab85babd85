"""Who may come in: before anything else looks at a request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WRONG_PASSWORD_PAUSE_S = 0.5
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ANY_HOST = "*"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses requests under foreign names, without the password, and those that other sites' pages send.

    A page on another site can make a visitor's browser send requests here, with the password that the browser remembers, or
    to a server that listens on the visitor's own machine only. Browsers say where a request comes from, and under which name
    they looked the server up.

    Args:
        app: what is guarded.
        password: asked for by HTTP's basic authentication, with any user name; None: nobody is asked. `/healthz` is open.
        allowed_hosts: names under which the server may be addressed; "*" allows all.
    """

    def __init__(self, app: ASGIApp, password: str | None, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._password = None if password is None else password.encode()
        self._hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is refused, and passes on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        if scope["path"] == "/healthz":
            await self._app(scope, receive, send_guarded)
        elif not self._is_own_name(headers.get("host", "")):
            text = "This server does not go by that name. Whoever runs it can allow it with --allowed_hosts."
            await _refuse(send_guarded, 400, text)
        elif not self._knows_password(headers.get("authorization", "")):
            if "authorization" in headers:
                await asyncio.sleep(WRONG_PASSWORD_PAUSE_S)
            await _refuse(
                send_guarded, 401, "This page needs a password.", {"WWW-Authenticate": 'Basic realm="memvit"'}
            )
        elif scope["method"] not in SAFE_METHODS and not _is_own_page(headers):
            await _refuse(send_guarded, 403, "Another site's page sent this; open the page of this server.")
        else:
            await self._app(scope, receive, send_guarded)

    def _is_own_name(self, host: str) -> bool:
        if ANY_HOST in self._hosts:
            return True
        try:
            return (urlsplit(f"//{host}").hostname or "").lower() in self._hosts
        except ValueError:
            return False

    def _knows_password(self, authorization: str) -> bool:
        if self._password is None:
            return True
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(given, self._password)


def _is_own_page(headers: Headers) -> bool:
    """Whether a request comes from our page, or from no page at all."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:
        return False


async def _refuse(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = json.dumps({"error": text}).encode()
    start = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in start.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
