"""Access control: requests for a foreign host name or from a foreign page are rejected.

Otherwise another site that a user has open could send requests to the page, by a host name that it resolves to
this computer (DNS rebinding) or by a form (cross-site request forgery).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameHost:
    """ASGI middleware that accepts only requests to this computer, from its own page or from programs.

    The `Host` of a request must be an IP address, localhost or the name of this computer; its `Origin`, if any,
    must be the same host and port.

    Args:
        app: application to protect.
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
                await PlainTextResponse("requests from other sites are rejected", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_local_name(host: str) -> bool:
    """Return whether a `Host` header, with or without a port, is an IP address or a local name, not a DNS name."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return name in {"localhost", own, f"{own}.local"}
    return True


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached from this computer only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
