"""Decides who may ask for the live page, and who may press a button on it.

- **Another machine** is refused, unless hosts are named.
- **DNS rebinding**: a page of `evil.example` whose name suddenly means 127.0.0.1 asks with its own name in
  `Host`. So `Host` must be a name that is allowed.
- **Other pages in the same browser** cannot read answers, because there is no CORS header. Requests of theirs
  are refused by `Sec-Fetch-Site` and `Origin`, so that they can neither press a button nor take a viewer's
  place.
- **Whoever can open the page** cannot press a button without the token, which is not on the page.
"""

from __future__ import annotations

import hmac
import ipaddress
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from glasspoint.telemetry.live.options import HOSTS

if TYPE_CHECKING:
    from glasspoint.telemetry.live.options import Live
    from glasspoint.telemetry.live.requests import Request

__all__ = ["TOKEN", "Refusal", "refusal", "refusal_of_post"]

TOKEN = "x-glasspoint-token"  # the header's name


class Refusal(NamedTuple):
    """Why a request is refused."""

    status: HTTPStatus
    text: str


def refusal(request: Request, live: Live) -> Refusal | None:
    """Return why a request may not be answered; `None` if it may.

    Args:
        request: The request.
        live: What the application has chosen.
    """
    hosts = live.hosts or ()
    is_local = _is_loopback(request.client)
    if not is_local and not hosts:
        return Refusal(
            HTTPStatus.FORBIDDEN,
            "The live page is only for clients on the machine that serves it. To allow others, name the host "
            f"names that they use in {HOSTS}, behind a proxy that asks for a password.",
        )
    name = _host_name(request.header("host"))
    if name is None or not (name in hosts or (is_local and _is_local_name(name))):
        return Refusal(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"The live page is not served under this host name. To allow it, name it in {HOSTS}.",
        )
    site = request.header("sec-fetch-site")
    if site not in (None, "same-origin", "none") and not _is_link(request):
        return Refusal(HTTPStatus.FORBIDDEN, "The live page answers no requests of other pages.")
    origin = request.header("origin")
    if origin is not None and not _is_of_host(origin, request.header("host")):
        return Refusal(HTTPStatus.FORBIDDEN, "The live page answers no requests of other origins.")
    return None


def refusal_of_post(request: Request, live: Live) -> Refusal | None:
    """Return why a request that changes something is refused; `None` if it is not. `refusal` comes before."""
    if request.header("sec-fetch-site") not in (None, "same-origin"):
        return Refusal(HTTPStatus.FORBIDDEN, "Buttons are pressed on the page itself.")
    if live.token is None:
        return Refusal(HTTPStatus.FORBIDDEN, "This page has no token, so it takes no requests of this kind.")
    given = request.header(TOKEN) or ""
    if not hmac.compare_digest(given.encode("utf-8", "replace"), live.token.encode("utf-8", "replace")):
        return Refusal(
            HTTPStatus.FORBIDDEN,
            "The token is missing or wrong: open the page with the whole address that the demo has printed.",
        )
    content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The Content-Type must be application/json.")
    return None


def _is_link(request: Request) -> bool:
    """Tell whether a user follows a link to a page. Nothing else may begin on another page, nor a frame."""
    return (
        request.method in ("GET", "HEAD")
        and request.header("sec-fetch-mode") == "navigate"
        and request.header("sec-fetch-dest") == "document"
        and not request.path.endswith("/events")
    )


def _is_loopback(client: str | None) -> bool:
    try:
        address = ipaddress.ip_address((client or "").partition("%")[0])
    except ValueError:  # not known, as behind a Unix socket
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host_name(host: str | None) -> str | None:
    """Return the name in `Host`, without the port, in small letters; `None` if there is none."""
    if not host:
        return None
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or port.endswith("]"):
        return host.strip().lower()
    return name if port.isascii() and port.isdigit() else None


def _is_local_name(name: str) -> bool:
    """Tell whether a name always means this machine. An address cannot be rebound by DNS."""
    if name == "localhost":
        return True
    is_ipv6 = name.startswith("[") and name.endswith("]")
    try:
        address = ipaddress.ip_address(name[1:-1] if is_ipv6 else name)
    except ValueError:
        return False
    return address.is_loopback and is_ipv6 == (address.version == 6)


def _is_of_host(origin: str, host: str | None) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    is_origin = parts.scheme in ("http", "https") and not (parts.path or parts.query or parts.fragment)
    return is_origin and host is not None and parts.netloc.lower() == host.strip().lower()
