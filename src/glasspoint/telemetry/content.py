"""What was said in a turn, in the forms that back ends show: only for applications that ask for it.

- `gen_ai.input.messages`, `gen_ai.output.messages`: OpenTelemetry's conventions, messages as JSON.
- `input.value`, `output.value`: openinference's, the text of the last message. Phoenix shows these.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.messages import AnyMessage, BaseMessage

__all__ = ["VARIABLE", "input_attributes", "is_asked_for", "output_attributes"]

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}


def is_asked_for(given: bool | None) -> bool:
    """Whether content is recorded: as given, else as the standard variable says, else not."""
    return os.environ.get(VARIABLE, "").strip().lower() == "true" if given is None else given


def input_attributes(messages: object) -> dict[str, str]:
    """Return the attributes for what a user has said.

    Example:
        >>> input_attributes("hello")["gen_ai.input.messages"]
        '[{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]'
    """
    return _attributes("input", _converted(messages, "human"))


def output_attributes(messages: object) -> dict[str, str]:
    """Return the attributes for what an agent has answered."""
    return _attributes("output", _converted(messages, "ai"))


def _attributes(direction: str, messages: Sequence[BaseMessage]) -> dict[str, str]:
    told = [_message(each, is_output=direction == "output") for each in messages]
    return {
        f"gen_ai.{direction}.messages": json.dumps(told, ensure_ascii=False),
        f"{direction}.value": messages[-1].text if messages else "",
        f"{direction}.mime_type": "text/plain",
        "openinference.span.kind": "AGENT",
    }


def _converted(messages: Any, role: str) -> Sequence[AnyMessage | BaseMessage]:
    from langchain_core.messages import BaseMessage, convert_to_messages

    if isinstance(messages, str):
        messages = [(role, messages)]
    elif isinstance(messages, BaseMessage):
        messages = [messages]
    return convert_to_messages(messages)


def _message(message: BaseMessage, *, is_output: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.type == "tool":
        parts.append(
            {
                "type": "tool_call_response",
                "id": getattr(message, "tool_call_id", None),
                "response": message.text,
            }
        )
    elif message.text:
        parts.append({"type": "text", "content": message.text})
    for call in getattr(message, "tool_calls", ()):
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": call["name"],
                "arguments": call["args"],
            }
        )
    told: dict[str, Any] = {"role": _ROLES.get(message.type, message.type), "parts": parts}
    if is_output:
        told["finish_reason"] = "tool_call" if getattr(message, "tool_calls", ()) else "stop"
    return told
