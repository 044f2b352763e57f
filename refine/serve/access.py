"""Who may ask the page: requests that name a foreign host, or come from a foreign page, are refused.

Another site that a visitor has open could otherwise talk to the page, by a name that it lets point to this
computer (DNS rebinding) or by a form (cross-site request forgery).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameHost:
    """ASGI middleware that lets only requests to this computer through, from its own page or from programs.

    A request's `Host` must be an IP address, localhost or this computer's name; its `Origin`, if it has one, must
    be the same host and port.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            host, origin = headers.get("host", ""), headers.get("origin")
            if not is_local_name(host):
                await PlainTextResponse(f"unknown host {host!r}", 421)(scope, receive, send)
                return
            if origin is not None and urlsplit(origin).netloc != host:
                await PlainTextResponse("requests of other sites are not answered", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_local_name(host: str) -> bool:
    """Whether a `Host` header, with or without a port, names this computer and nothing that DNS could redirect."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in {"localhost", own, f"{own}.local"}
    return True


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach a server that listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
