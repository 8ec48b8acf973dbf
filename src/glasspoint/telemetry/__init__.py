"""Telemetry: the core tells events, and what stands here turns them into metrics and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.telemetry.events import Telemetry
from glasspoint.telemetry.metrics import Metrics
from glasspoint.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ["Telemetry", "create_telemetry"]


def create_telemetry(
    *,
    saver_name: str = "default",
    registry: CollectorRegistry | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Telemetry:
    """Make what a saver reports to.

    Args:
        saver_name: The `saver` label on every metric; savers of one name are counted together.
        registry: The Prometheus registry, by default the process's own. Savers may share one.
        tracer_provider: Where spans go, by default to the process's own provider. None is configured here:
            without an OpenTelemetry SDK in the process, spans cost next to nothing and go nowhere.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> create_telemetry(saver_name="docs", registry=CollectorRegistry()).saver_name
        'docs'
    """
    return Telemetry(saver_name, (Tracing(tracer_provider), Metrics(saver_name, registry)))
