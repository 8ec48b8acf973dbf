"""The demo's chat model: it needs no network and no weights, and answers from the messages of the call.

It has no memory of its own, so it is a fair witness. If it says the right name, the checkpointer has brought
back the message with the name. If it does not, the state was lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from glasspoint.errors import ConfigurationError

__all__ = ["MODEL_VARIABLE", "SUMMARY_PROMPT", "RecallingChatModel", "choose_chat_model"]

MODEL_VARIABLE = "GLASSPOINT_DEMO_MODEL"
SUMMARY_PROMPT = "Summarise the conversation so far in one short line. Keep every name."

# A name of one word, without Korean's copula behind it: `철수야`, `지은이에요`. `이름은 뭐야` gives no name.
_NAME = re.compile(
    r"이름은 (?!뭐|무엇|누구|기억|아직)(?P<korean>[^\s.,!?]+?)"
    r"(?:이?(?:야|라고|에요|예요)|입니다)?(?=[\s.,!?]|$)"
    r"|name is (?P<english>[^\W\d_][\w'’-]*)",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"이름.*(?:뭐|무엇|기억)|누구|(?:what|remember|know).*\bmy name\b|\bwho am i\b", re.IGNORECASE
)


class RecallingChatModel(BaseChatModel):
    """A deterministic chat model that knows only the messages of the call.

    It finds the name that a human message or a summary (a system message) gives, and answers questions about
    that name in Korean or English. If the messages hold no name, it says so. It can also summarise.

    Example:
        >>> model = RecallingChatModel()
        >>> model.invoke([("user", "내 이름은 철수야"), ("user", "내 이름이 뭐라고 했지?")]).content
        '철수라고 하셨어요.'
        >>> model.invoke("내 이름이 뭐라고 했지?").content
        '이름을 아직 말씀해 주지 않으셨어요.'
    """

    @property
    def _llm_type(self) -> str:
        return "glasspoint-demo"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(_reply_to(messages)))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for word in re.findall(r"\S+\s*", _reply_to(messages)):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))


def choose_chat_model() -> BaseChatModel:
    """Return the model that `GLASSPOINT_DEMO_MODEL` names (`provider:name`), or the deterministic one.

    Raises:
        ConfigurationError: The variable is set, but `langchain`, the package of the provider or its
            settings are missing.
    """
    wanted = os.environ.get(MODEL_VARIABLE, "").strip()
    if not wanted:
        return RecallingChatModel()
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        raise ConfigurationError(
            f"{MODEL_VARIABLE} is set, but langchain is not installed. Install it and the package"
            " of the provider (pip install langchain langchain-openai, for example), or unset the variable."
        ) from None
    try:
        model: BaseChatModel = init_chat_model(wanted)
    except Exception as error:
        # The provider's error text is passed on, but without its traceback.
        raise ConfigurationError(
            f"{MODEL_VARIABLE}={wanted} gives no chat model: {error}. It has to read provider:name, with the"
            " provider's package installed and its key in the environment."
        ) from None
    return model


def _reply_to(messages: Sequence[BaseMessage]) -> str:
    name = _name_in(messages)
    spoken = [str(message.text) for message in messages if isinstance(message, HumanMessage)]
    latest = spoken[-1] if spoken else ""
    korean = _is_korean(latest)
    if any(isinstance(message, SystemMessage) and message.text == SUMMARY_PROMPT for message in messages):
        if name is None:
            return "이름은 아직 모름." if korean else "No name was given yet."
        return f"사용자의 이름은 {name}." if korean else f"The user's name is {name}."
    if told := _given_in(latest):
        return (
            f"반가워요, {told}님. 기억해 둘게요." if korean else f"Nice to meet you, {told}. I will remember."
        )
    if _QUESTION.search(latest):
        if name is None:
            return "이름을 아직 말씀해 주지 않으셨어요." if korean else "You have not told me your name yet."
        return (
            f"{name}{'이' * _ends_with_consonant(name)}라고 하셨어요."
            if korean
            else f"You said that your name is {name}."
        )
    if korean:
        return f"네, {name}님, 듣고 있어요." if name else "네, 듣고 있어요."
    return f"I am listening, {name}." if name else "I am listening."


def _name_in(messages: Sequence[BaseMessage]) -> str | None:
    """Return the newest name that a human or a summary gave. The model's own messages do not count."""
    said = (str(each.text) for each in reversed(messages) if isinstance(each, HumanMessage | SystemMessage))
    return next(filter(None, map(_given_in, said)), None)


def _given_in(text: str) -> str | None:
    """Return the name that a text gives; if there are several, the last one."""
    names = [found["korean"] or found["english"] for found in _NAME.finditer(text)]
    return names[-1] if names else None


def _is_korean(text: str) -> bool:
    return any("가" <= character <= "힣" for character in text)


def _ends_with_consonant(name: str) -> bool:
    """Tell whether Korean says `이라고` after a name, and not `라고`."""
    if _is_korean(name[-1]):
        return (ord(name[-1]) - ord("가")) % 28 != 0
    return name[-1].lower() not in "aeiouy"
