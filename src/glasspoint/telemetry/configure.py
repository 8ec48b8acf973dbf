"""Sets up OpenTelemetry for an application: from the standard variables, with the installed instrumentations.

A library must not do this by itself, so Glasspoint does it only when the application calls it. An application
that sets up an SDK itself, or runs under `opentelemetry-instrument`, does not need this module.

Spans wait in a bounded queue, and a thread sends them. So a collector that hangs, refuses or is missing does
not slow a conversation: spans that do not fit are dropped, and the exit of the process waits for a bounded
time.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from opentelemetry import trace

from glasspoint.errors import ConfigurationError, WrongTypeError
from glasspoint.telemetry import content
from glasspoint.telemetry import thread_ids as ways

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = ["ConfiguredTelemetry", "configure_telemetry"]

_log = logging.getLogger("glasspoint.telemetry")

_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_OTLP = "OTEL_EXPORTER_OTLP_{}"
_OTLP_TRACES = "OTEL_EXPORTER_OTLP_TRACES_{}"
_EXPORTER_MODULES = {
    "http/protobuf": ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otlp"),
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "otlp-grpc"),
}


class _Instrumentation(NamedTuple):
    name: str
    module: str
    instrumentor: str


# Of the two for LangChain, only the first that is installed is turned on.
_INSTRUMENTATIONS = (
    _Instrumentation("redis", "opentelemetry.instrumentation.redis", "RedisInstrumentor"),
    _Instrumentation("psycopg", "opentelemetry.instrumentation.psycopg", "PsycopgInstrumentor"),
    _Instrumentation("langchain", "openinference.instrumentation.langchain", "LangChainInstrumentor"),
    _Instrumentation("langchain", "opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
)


class ConfiguredTelemetry:
    """The telemetry that `configure_telemetry` has set up. Call `shutdown`, or use `with` or `async with`.

    Attributes:
        tracer_provider: The provider of spans. Pass it to `create_telemetry` if it is not the process's own.
        instrumented: The instrumentations that were turned on: of `redis`, `psycopg`, `langchain`.
        exports_to: The host that spans are sent to, if any.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        exporters: Sequence[SpanExporter],
        instrumentors: dict[str, Any],
        exports_to: str | None,
        flush_seconds: float,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.instrumented = tuple(instrumentors)
        self.exports_to = exports_to
        self._exporters = exporters
        self._instrumentors = instrumentors
        self._flush_seconds = flush_seconds
        self._is_shut_down = False
        atexit.register(self.shutdown)

    def shutdown(self) -> bool:
        """Send the remaining spans, and turn the instrumentations off. May be called twice.

        It is called automatically when the process exits. It blocks for up to `flush_seconds`: on an event
        loop, use `async with`, or call it in a thread.

        Returns:
            Whether it finished in that time; if not, spans may be lost, and a warning is logged.
        """
        if self._is_shut_down:
            return True
        self._is_shut_down = True
        atexit.unregister(self.shutdown)
        for instrumentor in self._instrumentors.values():
            with suppress(Exception):
                instrumentor.uninstrument()
        # The SDK waits for its exporter without a limit of ours. So this runs in a daemon thread.
        sending = threading.Thread(
            target=self.tracer_provider.shutdown, name="glasspoint-telemetry-shutdown", daemon=True
        )
        sending.start()
        sending.join(self._flush_seconds)
        if sending.is_alive():
            _log.warning(
                "The last spans could not be sent within %s s, and are lost: is the collector there?",
                self._flush_seconds,
            )
            for exporter in self._exporters:  # ends their retries
                threading.Thread(target=exporter.shutdown, name=sending.name, daemon=True).start()
        return not sending.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.shutdown)


def configure_telemetry(
    *,
    service_name: str | None = None,
    thread_ids: ThreadIds | None = None,
    capture_content: bool | None = None,
    span_processors: Sequence[SpanProcessor] = (),
    conversation_ratio: float | None = None,
    set_global: bool = True,
    flush_seconds: float = 3.0,
) -> ConfiguredTelemetry:
    """Set up OpenTelemetry tracing for an application. Call it once, before savers, clients and pools open.

    It turns on the installed instrumentations of Redis, psycopg and LangChain (openinference's, or
    OpenTelemetry's), except those that `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` names. It heeds the standard
    variables: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
    `OTEL_TRACES_EXPORTER` (`otlp`, `console`, `none`; not set: `otlp`, if it has an endpoint),
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `…_PROTOCOL` (`http/protobuf`, `grpc`), `…_HEADERS`, `…_TIMEOUT`, and
    `OTEL_SDK_DISABLED`.

    Args:
        service_name: `service.name`, unless the environment has `OTEL_SERVICE_NAME`.
        thread_ids: How LangChain's spans show thread ids, as in `create_telemetry`.
        capture_content: Whether spans of instrumentations may hold messages and other content. By default
            only if `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` is `true`.
        span_processors: Further processors. What they receive when a span ends is redacted like what is sent;
            so is what processors receive that are added to the provider later. (A processor also receives
            the span itself when it begins, so that it can add attributes: what it keeps of that is its own.)
        conversation_ratio: The share of conversations whose turns are recorded, from 0 to 1: see
            `ConversationSampler`. By default, `OTEL_TRACES_SAMPLER` says what is recorded.
        set_global: Whether to make the provider the process's own.
        flush_seconds: How long a shutdown waits until all spans are sent. Also the timeout of one export,
            unless `OTEL_EXPORTER_OTLP_TIMEOUT` is set.

    Raises:
        ConfigurationError: OpenTelemetry is set up already; or the environment names an exporter or a
            protocol that is unknown or not installed; or `span_processors` or `conversation_ratio` cannot be
            used. (If their type is wrong, the error is a `TypeError`, too.)
    """
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from glasspoint.telemetry.graph_spans import GraphSpans
    from glasspoint.telemetry.live.spans import LiveSpans
    from glasspoint.telemetry.redacting import RedactingExporter, RedactingProvider
    from glasspoint.telemetry.sampling import ConversationSampler

    processors = _checked(span_processors)
    sampler = None if conversation_ratio is None else ConversationSampler(conversation_ratio)
    if set_global and isinstance(trace.get_tracer_provider(), TracerProvider):
        raise ConfigurationError(
            "OpenTelemetry is set up already in this process: call configure_telemetry once, and not at all "
            "under opentelemetry-instrument, which does the same."
        )
    capture_content = content.is_asked_for(capture_content)
    way = ways.choose(thread_ids)
    exporters = list(_exporters(flush_seconds))
    named = service_name is not None and not os.environ.get("OTEL_SERVICE_NAME")
    resource = Resource.create({SERVICE_NAME: service_name} if named and service_name else {})
    # No shutdown by the SDK when the process exits: that could take half a minute.
    provider = RedactingProvider(
        resource=resource,
        sampler=sampler,
        shutdown_on_exit=False,
        thread_ids=way,
        capture_content=capture_content,
    )
    provider.add_trusted_processor(GraphSpans())
    provider.add_trusted_processor(LiveSpans(thread_ids=way))
    for processor in processors:
        provider.add_span_processor(processor)
    for exporter in exporters:
        # This redacts in the thread that sends, and not where a span ends.
        redacting = RedactingExporter(exporter, thread_ids=way, capture_content=capture_content)
        provider.add_trusted_processor(BatchSpanProcessor(redacting))
    if set_global:
        trace.set_tracer_provider(provider)
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    instrumentors = {} if is_disabled else _instrument(provider)
    return ConfiguredTelemetry(provider, exporters, instrumentors, _exports_to(), flush_seconds)


def _checked(span_processors: object) -> list[SpanProcessor]:
    """Return the processors as a list, if they are such."""
    if isinstance(span_processors, str | bytes) or not isinstance(span_processors, Iterable):
        raise WrongTypeError(
            f"span_processors is a single {type(span_processors).__name__}: pass a list of span processors."
        )
    found = list(span_processors)
    for each in found:
        if not (callable(getattr(each, "on_start", None)) and callable(getattr(each, "on_end", None))):
            hint = " Wrap an exporter in a BatchSpanProcessor." if hasattr(each, "export") else ""
            raise WrongTypeError(
                f"span_processors holds {_a(type(each).__name__)}, which is no span processor.{hint}"
            )
    return found


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _exporters(seconds: float) -> Iterator[SpanExporter]:
    for name in _exporter_names():
        if name == "otlp":
            yield _otlp_exporter(seconds)
        elif name == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            yield ConsoleSpanExporter()
        elif name != "none":
            raise ConfigurationError(f"OTEL_TRACES_EXPORTER is {name!r}: choose of otlp, console, none.")


def _exporter_names() -> Iterable[str]:
    asked = os.environ.get("OTEL_TRACES_EXPORTER", "")
    return [name.strip() for name in asked.split(",") if name.strip()] or (["otlp"] if _endpoint() else [])


def _otlp_exporter(seconds: float) -> SpanExporter:
    protocol = _variable("PROTOCOL") or "http/protobuf"
    if protocol not in _EXPORTER_MODULES:
        known = ", ".join(_EXPORTER_MODULES)
        raise ConfigurationError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: choose one of {known}.")
    module, extra = _EXPORTER_MODULES[protocol]
    try:
        exporter: type[SpanExporter] = import_module(module).OTLPSpanExporter
    except ImportError:
        raise ConfigurationError(
            f"Spans are to be sent over OTLP ({protocol}), but the exporter is not installed. Install it "
            f"with pip install 'glasspoint[{extra}]', or unset OTEL_EXPORTER_OTLP_ENDPOINT."
        ) from None
    # The timeout is for one batch, retries included.
    return exporter(timeout=None if _variable("TIMEOUT") else seconds)  # type: ignore[call-arg]


def _instrument(provider: TracerProvider) -> dict[str, Any]:
    """Turn on the installed instrumentations that are not on yet. One that fails is only logged."""
    turned_on: dict[str, Any] = {}
    disabled = {name.strip() for name in os.environ.get(_DISABLED, "").split(",")}
    for each in _INSTRUMENTATIONS:
        if each.name in turned_on or disabled & {each.name, "*"}:
            continue
        try:
            instrumentor = getattr(import_module(each.module), each.instrumentor)()
        except ImportError:
            continue
        try:
            if not instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.instrument(tracer_provider=provider)
                if instrumentor.is_instrumented_by_opentelemetry:  # it refuses versions that it does not know
                    turned_on[each.name] = instrumentor
        except Exception as exc:
            _log.warning("%s could not be turned on (%s).", each.module, type(exc).__name__)
    return turned_on


def _exports_to() -> str | None:
    if "otlp" not in _exporter_names():
        return None
    endpoint = _endpoint() or "http://localhost"
    return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").hostname


def _endpoint() -> str | None:
    return _variable("ENDPOINT")


def _variable(name: str) -> str | None:
    return os.environ.get(_OTLP_TRACES.format(name)) or os.environ.get(_OTLP.format(name))
