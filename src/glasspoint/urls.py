"""Connection URLs, taken apart without ever repeating what may be a password."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection
    from urllib.parse import SplitResult

__all__ = ["split_url"]


def split_url(url: object, server: str, schemes: Collection[str], example: str) -> SplitResult:
    """Take a URL apart.

    Args:
        url: The URL.
        server: Whose it is, for the message.
        schemes: What it may begin with.
        example: One that is right, for the message.

    Raises:
        ConfigurationError: It is not a URL of these, or a special character in its password is not
            percent-encoded, so that a part of the password would be taken for the host or an option.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigurationError(f"The {server} URL is empty: it must look like {example}.")
    try:
        parts = urlsplit(url)
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
