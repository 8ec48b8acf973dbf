"""A real Chromium, for pictures, tests and benchmarks of the pages that Glasspoint makes."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

__all__ = ["CHROMIUM", "launched"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program; `None`: none is installed, and Playwright looks for a browser of its own."""


@contextmanager
def launched(*arguments: str) -> Iterator[Browser]:
    """Start the browser, and end it.

    Args:
        arguments: Further arguments of the program.
    """
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium's sandbox cannot be had. It only sees pages that are made here.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
