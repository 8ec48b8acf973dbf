"""Samples whole conversations: all turns of a conversation are recorded, or none.

A sampler that decides trace by trace breaks conversations: a turn that is not recorded stores no link, so the
turn after it does not know what it continues.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased

from glasspoint.errors import ConfigurationError, WrongTypeError
from glasspoint.telemetry.conversation import conversation_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind
    from opentelemetry.trace.span import TraceState
    from opentelemetry.util.types import Attributes

__all__ = ["ConversationSampler"]

_SPACE = 1 << 64


class ConversationSampler(Sampler):
    """Records all turns of a share of the conversations, in every process alike.

    - A turn (`conversation_turn`) is recorded if its thread id, hashed, falls into the share: whatever is
      decided for a request around it.
    - Every other span follows its parent.
    - A span without a parent follows its conversation if it names one, else its trace id.

    Example:
        >>> provider = TracerProvider(sampler=ConversationSampler(0.1))  # doctest: +SKIP
    """

    def __init__(self, ratio: float) -> None:
        """Take the share.

        Args:
            ratio: From 0 for none to 1 for all.

        Raises:
            ConfigurationError: It is not from 0 to 1. (If it is no number, the error is a `TypeError`, too.)
        """
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            raise WrongTypeError(
                f"The ratio of sampled conversations is of the type {type(ratio).__name__}: pass a number."
            )
        if not 0 <= ratio <= 1:
            raise ConfigurationError(
                f"The ratio of sampled conversations is {ratio}: it must be from 0 to 1."
            )
        self.ratio = float(ratio)
        self._by_trace = TraceIdRatioBased(self.ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide whether a span is recorded."""
        parent = trace.get_current_span(parent_context).get_span_context()
        state = parent.trace_state if parent.is_valid else None
        told = attributes or {}
        is_turn = told.get("gen_ai.operation.name") == "invoke_agent" and name.startswith("invoke_agent")
        if parent.is_valid and not is_turn:
            is_sampled = parent.trace_flags.sampled
        else:
            thread_id = conversation_in(parent_context) or told.get("gen_ai.conversation.id")
            if thread_id is None:
                return self._by_trace.should_sample(None, trace_id, name, kind, attributes, links, state)
            is_sampled = self.samples(str(thread_id))
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP
        return SamplingResult(decision, attributes if is_sampled else None, state)

    def samples(self, thread_id: str) -> bool:
        """Tell whether a conversation is recorded."""
        digest = hashlib.sha256(thread_id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.ratio * _SPACE

    def get_description(self) -> str:
        """Return a description for logs."""
        return f"ConversationSampler{{{self.ratio}}}"
