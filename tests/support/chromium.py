"""A real Chromium, for the tests of the pages that Glasspoint makes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from dashboards import browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

CHROMIUM = browser.CHROMIUM

expect.set_options(timeout=30_000)  # by default five seconds, which a busy machine may need

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""
"""Records what a page's policy has forbidden: to run in a page before its own scripts."""


@contextmanager
def launched(*arguments: str) -> Iterator[Browser]:
    """Start the browser; the test is skipped if none is installed."""
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with browser.launched(*arguments) as launched_browser:
        yield launched_browser
