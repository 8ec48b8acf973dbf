"""Finds the primary among the hosts of a connection string, and keeps where the connections lead.

Open this file when new connections lead to the wrong server, or take long because a host does not respond.

A saver needs the primary: a standby lags behind it. So a connection string that does not say what kind of
server it wants gets `target_session_attrs=primary`. libpq then refuses a standby, also if it is the only
host. A name that leads to a standby for a while (after a failover, until the name service follows) gives no
connection in that time, instead of one that reads an older state.

`primary` and not `read-write`: a primary whose `default_transaction_read_only` is on (a full disk, at some
providers) still answers reads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from glasspoint.logs import get_logger
from glasspoint.model.urls import address_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psycopg

__all__ = ["Hosts", "count_hosts", "wants_primary"]

_log = get_logger("glasspoint.l2")

# libpq knows `primary` since its version 14.
_PRIMARY = "primary" if pq.version() >= 140000 else "read-write"
_OF_THE_PRIMARY = ("primary", "read-write")

Address = tuple[str | None, int | None]


def wants_primary(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameter that makes libpq connect to the primary only; empty if the user chooses.

    Args:
        given: The parameters of the connection string. A service file may hold more, so if it names one,
            nothing is added.
    """
    chosen = "target_session_attrs" in given or "service" in given
    if chosen or os.environ.get("PGTARGETSESSIONATTRS") or os.environ.get("PGSERVICE"):
        return {}
    return {"target_session_attrs": _PRIMARY}


def count_hosts(given: Mapping[str, Any]) -> int:
    """Return the number of hosts in the parameters of a connection string, or in the environment."""
    hosts = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or ""
    return len(str(hosts).split(","))


class Hosts:
    """The hosts that a pool connects to, and the one that its last connection leads to."""

    def __init__(self, conninfo: str) -> None:
        """Begin without a connection.

        Args:
            conninfo: Where the pool connects to.
        """
        given = conninfo_to_dict(conninfo)
        self._lists = {name: str(given[name]).split(",") for name in _LISTS if given.get(name)}
        self.number = count_hosts(given)
        sizes = {len(each) for name, each in self._lists.items() if name != "port" or len(each) > 1}
        self.are_primary = given.get("target_session_attrs") in _OF_THE_PRIMARY
        """Whether every new connection leads to a primary, or is refused."""
        self._may_reorder = self.number > 1 and sizes == {self.number} and self.are_primary
        self._last = 0
        self.current: Address | None = None
        """Host (or socket directory) and port that the newest connection leads to. `None`: there was none."""
        self.moved: Callable[[Address], object] | None = None
        """Called when the newest connection leads to another server than the one before."""

    def last_first(self, conninfo: str) -> str:
        """Return a connection string that begins with the host that was the primary last.

        So a host that does not respond any more (its machine is gone) costs one connection its timeout, not
        every one. And if a former primary comes back without knowing that it was replaced, the processes that
        have found its successor stay there.
        """
        if not self._may_reorder or not self._last:
            return conninfo
        order = [self._last, *(number for number in range(self.number) if number != self._last)]
        lists = {
            name: ",".join(each[number] for number in order)
            for name, each in self._lists.items()
            if len(each) > 1
        }
        return make_conninfo(conninfo, **lists)

    def connected(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Keep where a new connection leads."""
        before, self.current = self.current, (connection.info.host or None, connection.info.port)
        if before == self.current:
            return
        self._last = self._number_of(connection) if self._may_reorder else 0
        if before is not None:
            _log.warning(
                "L2 (PostgreSQL): new connections lead to %s now, and led to %s before: a failover, or a "
                "switch of the primary.",
                _shown(self.current),
                _shown(before),
            )
        if self.moved is not None:
            self.moved(self.current)

    def _number_of(self, connection: psycopg.AsyncConnection[Any]) -> int:
        hosts = self._lists.get("host") or self._lists["hostaddr"]
        ports = self._lists.get("port") or [""]
        ports = ports if len(ports) > 1 else ports * self.number
        for number, (host, port) in enumerate(zip(hosts, ports, strict=True)):
            if host == connection.info.host and port in ("", str(connection.info.port)):
                return number
        return 0


_LISTS = ("host", "hostaddr", "port")


def _shown(address: Address) -> str:
    host, port = address
    return address_text(host or "the local socket", port or 5432)
