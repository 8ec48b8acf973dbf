"""Servers of Redis that speak TLS, and a certificate for them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glasspoint.embedded import EmbeddedRedis
from glasspoint.embedded.servers import _free_port
from sentinels import Sentinel

__all__ = ["HAS_TLS", "Certificate", "TlsRedis", "TlsSentinel", "certified"]

# The wheels' servers are built without TLS.
_PROGRAM = shutil.which("redis-server")


def _has_tls() -> bool:
    if _PROGRAM is None or shutil.which("openssl") is None:
        return False
    version = subprocess.run([_PROGRAM, "--version"], capture_output=True, text=True, check=False).stdout
    return "v=7." in version and b"tls-cert-file" in Path(_PROGRAM).read_bytes()


HAS_TLS = _has_tls()


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1, signed by its own key.

    Attributes:
        file: The certificate, which is its own authority.
        key: Its key.
    """

    file: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that has it. All connections that the server makes use TLS, too."""
        return {
            "tls-cert-file": str(self.file),
            "tls-key-file": str(self.key),
            "tls-ca-cert-file": str(self.file),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }

    @property
    def query(self) -> str:
        """The query of a URL that trusts it."""
        return f"?ssl_ca_certs={self.file}"


@contextmanager
def certified() -> Iterator[Certificate]:
    """A new certificate, in a folder that the servers' user may read."""
    with tempfile.TemporaryDirectory(prefix="glasspoint-tls-") as name:
        folder = Path(name)
        made = Certificate(folder / "redis.crt", folder / "redis.key")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
                *("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(made.key), "-out", str(made.file)),
            ],
            check=True,
            capture_output=True,
        )
        folder.chmod(0o755)
        made.key.chmod(0o644)
        yield made


class TlsRedis(EmbeddedRedis):
    """A server with two ports: `port` without TLS, for a test's own questions, and `tls_port`."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__()
        assert _PROGRAM is not None
        self._program = Path(_PROGRAM)
        self._certificate = certificate
        self.tls_port = _free_port()

    def start(self, *extra_args: str) -> None:
        settings = {"tls-port": str(self.tls_port), **self._certificate.settings}
        own = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().start(*own, *extra_args)


class TlsSentinel(Sentinel):
    """A sentinel that speaks TLS at `tls_port`, and with the master that it watches."""

    def __init__(self, certificate: Certificate, *settings: str) -> None:
        self.tls_port = _free_port()
        own = {"tls-port": str(self.tls_port), **certificate.settings}
        super().__init__(*(f"{name} {value}" for name, value in own.items()), *settings)
        assert _PROGRAM is not None
        self._program = Path(_PROGRAM)
