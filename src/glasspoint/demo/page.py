"""The demo's live page: its buttons and its chat, its address, and the browser that shows it.

The address holds a token in its fragment, which no browser sends to a server. Only who has it can press a
button or chat.
"""

from __future__ import annotations

import os
import secrets
import webbrowser
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.text import Text

from glasspoint.console import Block
from glasspoint.demo.chat import Chat
from glasspoint.demo.faults import USUAL, Faults, Timing
from glasspoint.demo.page_calls import PageCalls
from glasspoint.telemetry.live import Live, hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from rich.console import Console

    from glasspoint.demo.app import App
    from glasspoint.demo.servers import Servers
    from glasspoint.demo.telemetry import Observed
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["DemoPage", "open_browser"]

_DURING_THE_STORY = "The story is being told: the buttons and the chat work when it has ended."

# Browsers that would take the terminal away from the demo.
_IN_THE_TERMINAL = {"www-browser", "links", "elinks", "lynx", "w3m"}

_STYLES = {"info": "cyan", "good": "green", "warning": "yellow", "error": "red"}


class DemoPage:
    """What the demo adds to the live page. Everything that it tells stands in the terminal, too.

    Attributes:
        token: The secret that a page must have to press a button or to chat.
        calls: Takes the presses and the chat, from the end of the story on.
        faults: Does what the buttons say.
        chat: Runs the turns of the chat box.
    """

    def __init__(
        self, console: Console, observed: Observed, *, own: Collection[str], timing: Timing = USUAL
    ) -> None:
        """Take what the page shows and changes.

        Args:
            console: The terminal.
            observed: The observability of the demo.
            own: The servers that the demo may break, of `PostgreSQL` and `Redis`.
            timing: How long faults last.
        """
        self._console = console
        self._observed = observed
        self._own = own
        self._last_reason = ""
        self.token = secrets.token_urlsafe(16)
        self.calls = PageCalls(_DURING_THE_STORY)
        self.faults = Faults(self.calls, show=self._print, tell=self._tell, timing=timing)
        # Where the servers are a user's, a thread of this name must not be one of theirs.
        prefix = "chat-" if len(own) == 2 else f"chat-{uuid4().hex[:8]}-"
        self.chat = Chat(self.calls, observed, prefix=prefix)

    @property
    def live(self) -> Live:
        """The settings of the page."""
        return Live(
            actions=self.faults.actions(self._own),
            chat=self.chat.answer,
            token=self.token,
            tells=self.faults.states,
            keep=True,  # who opens the page after the story finds its turns there
        )

    def address(self, server_url: str) -> str:
        """Return the address to open, with the token."""
        return f"{server_url}/live#token={self.token}"

    def mark(self, kind: str, text: str, level: Level = "info") -> None:
        """Put a line on the page's timeline."""
        hub(self._observed.registry).mark(kind, text, level)

    @asynccontextmanager
    async def working_on(self, servers: Servers, app: App) -> AsyncIterator[None]:
        """Take presses and chat in the block; they work on these servers and this application."""
        self.chat.on(app)
        async with self.faults.on(servers, app, self._observed.registry):
            self.calls.open()
            try:
                yield
            finally:
                self.calls.close()

    def cannot_start(self, reason: str) -> None:
        """Tell that the application cannot start; the same reason only once in a row."""
        if reason != self._last_reason:
            self._tell(f"The app does not start, and tries again: {reason}", "error")
        self._last_reason = reason

    def _tell(self, text: str, level: Level) -> None:
        self.mark("fault", text, level)
        self._print(text, level)

    def _print(self, text: str, level: Level) -> None:
        self._console.print(Block(Text(text, _STYLES[level]), indent=2, lines_after=0), end="")


def open_browser(console: Console, address: str) -> None:
    """Open a page in the user's browser. Where there is none, say so."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        browser = None
    name = Path(getattr(browser, "name", "")).name
    if browser is None or (name in _IN_THE_TERMINAL and not os.environ.get("BROWSER")):
        console.print(Text("No browser was found here: open the address above yourself.\n", "yellow"))
        return
    # In a thread: some browsers return only when they are closed.
    Thread(target=browser.open, args=(address,), name="glasspoint-demo-browser", daemon=True).start()
