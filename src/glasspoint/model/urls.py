"""Connection URLs, taken apart without ever repeating what may be a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection
    from urllib.parse import SplitResult

__all__ = ["split_url"]


# Up to the authority, the authority, the rest (RFC 3986, appendix B).
_URL = re.compile(r"([^:/?#]+://)([^/?#]*)(.*)", re.DOTALL)


def split_url(
    url: object, server: str, schemes: Collection[str], example: str, *, many_hosts: bool = False
) -> SplitResult:
    """Take a URL apart.

    Args:
        url: The URL.
        server: Whose it is, for the message.
        schemes: What it may begin with.
        example: One that is right, for the message.
        many_hosts: It may name several hosts, each with its port, separated by commas. They stand together in
            `netloc` then; `hostname` and `port` are of no use.

    Raises:
        ConfigurationError: It is not a URL of these, or a special character in its password is not
            percent-encoded, so that a part of the password would be taken for the host or an option.
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
    """Take a URL apart whose authority names any number of hosts.

    Raises:
        ValueError: A host or a port cannot be one.
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
