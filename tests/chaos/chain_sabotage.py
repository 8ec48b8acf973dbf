"""The fallback chain broken on purpose, in the workers of a run, to see that the checker would notice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from glasspoint.fallback import draining
from glasspoint.history import drain
from glasspoint.history.beginning import Beginning
from glasspoint.l2 import store
from glasspoint.model import lineage
from glasspoint.savers import cached

__all__ = ["SABOTAGES", "VARIABLE", "sabotage"]

VARIABLE = "CHAIN_SABOTAGE"
"""The environment variable that names what is to be broken."""


def sabotage(name: str) -> None:
    """Break this process's Glasspoint in one way; an empty name breaks nothing."""
    if name:
        SABOTAGES[name]()


def _never_set_aside() -> None:
    """Every branch is taken for one that goes on from what is above."""
    relation_of = lineage.relation_of

    def broken(*args: Any, **options: Any) -> Any:
        found = relation_of(*args, **options)
        return "continued" if found == "apart" else found

    modules: tuple[Any, ...] = (cached, drain, store)
    for module in modules:
        assert module.relation_of is relation_of
        module.relation_of = broken


def _never_goes_on() -> None:
    """No thread begins with its cached state, and what is drained is taken for its continuation."""
    assert callable(Beginning.take)

    async def broken(self: Beginning, scope: Any) -> bool:
        return False

    Beginning.take = broken  # type: ignore[method-assign]
    _never_set_aside()


def _gives_up() -> None:
    """What PostgreSQL refuses for a passing reason is taken for what it will always refuse."""
    fate_of = draining._fate_of

    def broken(exc: BaseException) -> Any:
        fate = fate_of(exc)
        return "never" if fate == "passing" else fate

    draining._fate_of = broken


def _drops_some(every: int = 7) -> None:
    """Every seventh batch of a drain is not imported."""
    import_checkpoints: Any = cached.CachedPostgresSaver.import_checkpoints
    calls = count(1)

    async def broken(self: Any, items: Any, **options: Any) -> int:
        return 0 if next(calls) % every == 0 else int(await import_checkpoints(self, items, **options))

    cached.CachedPostgresSaver.import_checkpoints = broken  # type: ignore[method-assign]


def _drops_all() -> None:
    """Nothing of a drain is imported."""
    _drops_some(every=1)


SABOTAGES: dict[str, Callable[[], None]] = {
    "never set aside": _never_set_aside,
    "never goes on": _never_goes_on,
    "gives up": _gives_up,
    "drops some": _drops_some,
    "drops all": _drops_all,
}
"""Every way to break it."""
