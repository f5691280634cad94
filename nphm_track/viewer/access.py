"""Who may talk to the viewer: its own page, opened under its own name.

A browser lets any page on the web connect to servers on the same machine, and a name server can give any name the
address of this one (DNS rebinding). Both send what they are along: pages their ``Origin``, browsers the ``Host`` they
were asked for. The clip's pictures and meshes go to none but the page that the viewer itself has served.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit


def is_own(host: str | None, origin: str | None, served_at: str) -> bool:
    """Whether a request was made to the viewer by its own name, and by its own page where a page made it.

    Args:
        host: header of the request: a name or an address, with the port.
        origin: header of the request; None when no page made it.
        served_at: name or address that the viewer was told to listen at.
    """
    if host is None:
        return False
    name = _name(f"//{host}")
    if not (_is_address(name) or name in {"localhost", served_at.lower(), *_names_of_machine()}):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _names_of_machine() -> set[str]:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {name, short, f"{short}.local"}


@contextmanager
def own_page_only(served_at: str) -> Iterator[None]:
    """A viser server started in the block refuses requests that are not its own page's.

    viser has no setting for it: what it hands to ``websockets`` is wrapped on the way.
    """
    from websockets.asyncio import server

    serve = server.serve

    def guarded(handler: Any, host: Any, port: Any, *, process_request: Any = None, **settings: Any) -> Any:
        return serve(handler, host, port, process_request=_checked(process_request, served_at), **settings)

    server.serve = guarded  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        server.serve = serve  # type: ignore[misc]


def _checked(process_request: Callable[[Any, Any], Any] | None, served_at: str) -> Callable[[Any, Any], Any]:
    def answer(connection: Any, request: Any) -> Any:
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or len(origins) > 1 or not is_own(hosts[0], next(iter(origins), None), served_at):
            return connection.respond(HTTPStatus.FORBIDDEN, "this viewer answers its own page only\n")
        return process_request(connection, request) if process_request else None

    return answer
