"""A process with savers, as far as its metrics show: the calls are made up, the counting is real."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from glasspoint import Telemetry
from glasspoint.telemetry.events import SaverStatus
from glasspoint.telemetry.figures import Reading, TextReader, read_registry
from glasspoint.telemetry.metrics import Families, Metrics


class Worker:
    """A process, and the names of its savers."""

    def __init__(self, *savers: str) -> None:
        self.registry = CollectorRegistry()
        self.savers = {
            name: Telemetry(name, (Metrics(name, self.registry),)) for name in savers or ("default",)
        }
        self._text = TextReader()
        self._open: list[SaverStatus] = []

    def call(self, name: str, times: int = 1, saver: str = "default", **facts: object) -> None:
        for _ in range(times):
            with self.savers[saver].operation(name, None) as operation:
                for fact, value in facts.items():
                    setattr(operation, fact, value)

    def fail(self, name: str) -> None:
        with pytest.raises(OSError, match="no"), self.savers["default"].operation(name, None):
            raise OSError("no")

    def observe(self, metric: str, seconds: float, *labels: str, times: int = 1) -> None:
        for _ in range(times):
            child: Any = Families.of(self.registry).counted[metric].labels("default", *labels)
            child.observe(seconds)

    def open(self, saver: str = "default", **facts: Any) -> None:
        status = SaverStatus(pool=None, redis=None, **facts)
        self.savers[saver].opened(status)
        self._open.append(status)  # the collectors do not keep it alive

    def read(self, at: float) -> Reading:
        return replace(read_registry(self.registry), at=at)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def read_text(self, at: float) -> Reading:
        return replace(self._text.read(self.text()), at=at)
