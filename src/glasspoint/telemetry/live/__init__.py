"""The live page: what the savers of this process do, in a browser, while they do it.

`serve_telemetry(live=True)` or `telemetry_app(live=True)` serves it at `/live`. The modules:

- `options`: `Live`, what an application chooses; and the environment.
- `watch`, `timeline`: know the telemetry of a registry, and record rare events. They are always on.
- `recorder`, `turns`, `spans`: keep single calls and turns, while a page is open.
- `hubs`: sends what is new to all open pages, from a thread of its own.
- `peers`: the figures of other processes.
- `site`, `security`: the routes, without a server; `wsgi` and `asgi` connect them to one.
- `page/`: what the browser loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.telemetry.live.options import Action, Live, Reply

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.live.hubs import Hub

__all__ = ["Action", "Live", "Reply", "hub"]


def hub(registry: CollectorRegistry | None = None) -> Hub:
    """Return the hub of a registry: it feeds the pages that show the savers that report there.

    Args:
        registry: The registry; the process's default registry if `None`.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> hub(CollectorRegistry()).mark("story", "Act 1: a conversation begins", "info")
    """
    from prometheus_client import REGISTRY

    from glasspoint.telemetry.live.hubs import Hub

    return Hub.of(REGISTRY if registry is None else registry)
