"""Finds the name that speakers give for themselves, in a Korean or English sentence.

Korean joins the copula to the name (`철수야`, `지은이야`, `혜진이라고 해`). The name's last syllable shows
where the name ends: after a final consonant the copula begins with `이`, after a vowel it does not.
"""

from __future__ import annotations

import re

__all__ = ["asks_for_name", "name_given_in", "with_copula"]

_SENTENCE_END = re.compile(r"[.!?~…\n。]+")
_CORRECTED = re.compile(r"^.*(?:아니라|아니고|말고)[\s,]*")
_KOREAN_STATEMENT = re.compile(r"(?:내|제|나의|저의|사용자의)\s*이름은[\s:]*(?P<rest>.+)$")
_KOREAN_CALL_ME = re.compile(
    r"(?:나를|저를|날|절|나는|저는|난|전)\s*(?P<rest>[가-힣A-Za-z]+(?:이라고|라고)\s*(?:불러|부르|해|합니다).*)$"
)
_ENGLISH_STATEMENT = re.compile(
    r"\b(?i:my name is|my name's|call me|the user's name is)\s+"
    r"(?P<rest>[^\W\d_][\w'’-]*(?:\s+[A-Z][\w'’-]+)*)"
)
_KOREAN_QUESTION = re.compile(
    r"이름.*(?:뭐|뭔|무엇|무슨|누구|기억|알아|알고|말해)|(?:내가|나는|난|제가)\s*누구"
)
_ENGLISH_QUESTION = re.compile(r"(?:what|remember|know|tell|say).*\bmy name\b|\bwho am i\b", re.IGNORECASE)
_NOT_A_NAME = {"what", "not", "a", "the", "unknown"}
_KOREAN_ASKS = re.compile(r"^(?:뭐|뭔|뭘|무엇|무슨|누구|어떻|기억|아직|몰라|알)")

# The endings that may follow a name. Before an ending of the second list, an `이` belongs to the ending only
# after a final consonant.
_AFTER_ANY_SYLLABLE = ("입니다", "인데요", "인데", "이지", "이고")
_AFTER_VOWEL = ("라고", "랍니다", "래요", "예요", "에요", "야", "다")


def name_given_in(text: str) -> str | None:
    """Return the name that the speaker of `text` gives; if there are several, the last one.

    Example:
        >>> name_given_in("안녕! 내 이름은 지은이야.")
        '지은'
        >>> name_given_in("내 이름이 뭐라고 했지?") is None
        True
    """
    found: str | None = None
    for sentence in _SENTENCE_END.split(text):
        if korean := _KOREAN_STATEMENT.search(sentence) or _KOREAN_CALL_ME.search(sentence):
            found = _cut_out(_CORRECTED.sub("", korean["rest"])) or found
        elif english := _ENGLISH_STATEMENT.search(sentence):
            found = english["rest"] if english["rest"].lower() not in _NOT_A_NAME else found
    return found


def asks_for_name(text: str) -> bool:
    """Tell whether the speaker of `text` asks for their own name."""
    return bool(_KOREAN_QUESTION.search(text) or _ENGLISH_QUESTION.search(text))


def with_copula(name: str, ending: str) -> str:
    """Join `ending` (`라고`, `야` …) to `name` by Korean's rules: `철수라고`, but `지은이라고`."""
    return name + ("이" if _ends_with_consonant(name) else "") + ending


def _cut_out(rest: str) -> str | None:
    """Return the name from the text after `이름은`: the words up to the one that ends with the copula."""
    words: list[str] = []
    for word in rest.replace(",", " ").split():
        if _KOREAN_ASKS.match(word):
            break  # `내 이름은 뭐야`: a question, not a name
        bare = _without_copula(word.strip("'\"“”‘’()"))
        if bare:
            words.append(bare)
        if bare != word or len(words) == 3:
            break
    return " ".join(words) or None


def _without_copula(word: str) -> str:
    for ending in _AFTER_ANY_SYLLABLE:
        if word.endswith(ending):
            return word.removesuffix(ending)
    for ending in _AFTER_VOWEL:
        name = word.removesuffix(ending)
        if name == word or (ending == "다" and len(name) < 2):
            continue
        before = name.removesuffix("이")
        if before and before != name and (_ends_with_consonant(before) or before.isascii()):
            return before  # 지은|이|야; but 하이|야, because 하 would take a plain 야
        return name
    return word


def _ends_with_consonant(word: str) -> bool:
    last = word[-1:]
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28 != 0
    return last.isascii() and last.isalpha() and last.lower() not in "aeiouy"
