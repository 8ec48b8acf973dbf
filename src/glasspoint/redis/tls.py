"""Names the errors of redis-py, and tells why TLS refused a connection, which their names do not tell."""

from __future__ import annotations

import re

__all__ = ["named"]

# The text of OpenSSL's error, which redis-py quotes: "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify
# failed: self-signed certificate (_ssl.c:1006)".
_REFUSED = re.compile(r"\[SSL[^]]*\] (.+?)(?: \(_ssl\.c|$)")


def named(error: BaseException) -> str:
    """Return the name of an error of redis-py; and what TLS refused, if the error says so.

    For example "ConnectionError: certificate verify failed: self-signed certificate".
    """
    refused = _REFUSED.search(str(error))
    name = type(error).__name__
    return name if refused is None else f"{name}: {refused[1]}"
