"""What tests draw at random: the same in every run, or, with EXPLORE=1, something else in every run.

Open this file when a test draws something, or when a run of `make explore` has to be repeated.
That run prints its TEST_SEED; with the same TEST_SEED in the environment, a run draws the same again.

`make test` decides whether a change may be merged, so it must not fail by chance.
Hypothesis is derandomised, and `steps.seeded_dice` has one seed.
Derandomised examples still change with the source of a test, with the constants in the code under test, and
with Hypothesis' version. So no test may need a certain example.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random
from typing import Any, Final

from hypothesis import HealthCheck, settings

import glasspoint

__all__ = ["EXPLORING", "SEED", "rounds"]

EXPLORING: Final = bool(os.environ.get("EXPLORE"))
"""Whether this run looks for what nobody has seen yet."""

SEED: Final = os.environ.setdefault(
    "TEST_SEED", str(random.SystemRandom().randrange(2**32)) if EXPLORING else "1"
)
"""What all dice are seeded with. It stays in the environment, for the workers of pytest-xdist."""

_MORE: Final = 10


def rounds(usual: int, *, explored: int | None = None) -> int:
    """How often to do something that is done `usual` times in `make test`.

    Args:
        usual: The number in `make test`.
        explored: The number in `make explore`; by default ten times as many.
    """
    return (explored or usual * _MORE) if EXPLORING else usual


# No judgement by the clock, and no examples that an earlier run has left on the disk.
_CERTAIN: Final[dict[str, Any]] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("the same in every run", derandomize=True, **_CERTAIN)
settings.register_profile("explore", derandomize=False, max_examples=rounds(100), **_CERTAIN)


settings.load_profile("explore" if EXPLORING else "the same in every run")


# Hypothesis also draws the constants that it finds in the modules that are loaded. Without this, the examples
# would depend on which tests have run before.
for _module in pkgutil.walk_packages(glasspoint.__path__, f"{glasspoint.__name__}."):
    importlib.import_module(_module.name)
