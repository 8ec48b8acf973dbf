"""The base of all savers: it opens and closes a saver, reports its state, and wraps its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from glasspoint.model.home import Home
from glasspoint.model.lifetime import Lifetime
from glasspoint.model.sync_methods import SyncFace
from glasspoint.telemetry.events import ServerMoved
from glasspoint.telemetry.quiet import quiet_context

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.telemetry.events import SaverStatus, Server, Telemetry

__all__ = ["OpenedSaver"]


class OpenedSaver(SyncFace):
    """A saver that is opened and closed. Its subclasses add reads and writes."""

    def __init__(self, status: SaverStatus, telemetry: Telemetry, serde: SerializerProtocol | None) -> None:
        """Open the saver on the running event loop.

        Args:
            status: The status of the saver, for metrics and health checks.
            telemetry: Receives all events.
            serde: Serialises the values. By default, the serializer of LangGraph's savers.
        """
        super().__init__(serde=serde)
        self.home = Home(self)
        status.loop, status.check, status.reopen = self.home.loop, self._check, self.home.reopen
        self._status = status
        self._telemetry = telemetry
        self._lifetime = Lifetime(self.home, ended=lambda: telemetry.closed(status), background=quiet_context)
        telemetry.opened(status)

    def _server_moved(self, server: Server, address: tuple[str, int]) -> None:
        """Let telemetry know that a server has another address now."""
        self._status.addresses[server] = address
        self._telemetry.emit(ServerMoved(server, address))

    async def __aenter__(self) -> Self:
        self._lifetime.check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def status(self) -> SaverStatus:
        """The state of the saver and its servers, as metrics and health checks read it."""
        return self._status

    def close(self) -> Awaitable[None]:
        """Finish the work that is under way, and close what this saver has opened. May be called twice.

        On the saver's event loop, await the result. Everywhere else, the saver is closed when this returns.
        """
        return self._close_on_either_face(self._lifetime.close, done=not self._lifetime.is_open)

    async def ping(self) -> None:
        """Check that the saver works."""
        raise NotImplementedError

    async def _check(self) -> dict[str, Any]:
        """Return the state of the servers, for `/readyz`."""
        return {}
