"""Parses connection URLs, and shows addresses. Its errors never repeat a text that may be a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection
    from urllib.parse import SplitResult

__all__ = ["address_text", "split_url"]


# Three groups: the part before the authority, the authority, the rest (RFC 3986, appendix B).
_URL = re.compile(r"([^:/?#]+://)([^/?#]*)(.*)", re.DOTALL)


def split_url(
    url: object, server: str, schemes: Collection[str], example: str, *, many_hosts: bool = False
) -> SplitResult:
    """Split a URL into its parts.

    Args:
        url: The URL.
        server: The name of the server, for the message.
        schemes: The allowed schemes.
        example: A valid URL, for the message.
        many_hosts: Whether the URL may name several hosts, each with its port, separated by commas. All stand
            in `netloc` then. Do not use `hostname` and `port`.

    Raises:
        ConfigurationError: This is not a URL with one of the schemes. Or a special character in its password
            is not percent-encoded, so a part of the password would be read as the host or as an option.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigurationError(f"The {server} URL is empty: it must look like {example}.")
    try:
        parts = _split_hosts(url) if many_hosts else urlsplit(url)
        if not many_hosts:
            _ = parts.port
    except ValueError:
        raise ConfigurationError(
            f"The {server} URL cannot be understood: it must look like {example}, with special characters of "
            "the password percent-encoded (@ as %40)."
        ) from None
    if parts.scheme not in schemes:
        names = ", ".join(f"{scheme}://" for scheme in sorted(schemes))
        raise ConfigurationError(f"The {server} URL must begin with one of {names}, for example {example}.")
    if parts.netloc.count("@") > 1 or "@" in f"{parts.path}{parts.query}" or parts.fragment:
        raise ConfigurationError(
            f"The {server} URL cannot be understood: special characters of the user and the password must be "
            "percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23)."
        )
    return parts


def _split_hosts(url: str) -> SplitResult:
    """Split a URL with any number of hosts into its parts.

    Raises:
        ValueError: A host or a port is not valid.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return urlsplit(url)
    before, authority, after = found.groups()
    user, at, hosts = authority.rpartition("@")
    each = [urlsplit(f"{before}{user}{at}{host}{after}") for host in hosts.split(",")]
    for parts in each:
        _ = parts.port
    user, at, _ = each[0].netloc.rpartition("@")
    names = ",".join(parts.netloc.rpartition("@")[2] for parts in each)
    return each[0]._replace(netloc=f"{user}{at}{names}")


def address_text(host: str, port: int | str) -> str:
    """Return an address as text, for people: an IPv6 address in brackets, the path of a socket alone.

    Example:
        >>> address_text("::1", 6379)
        '[::1]:6379'
    """
    if host.startswith("/"):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
