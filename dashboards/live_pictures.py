"""`python -m dashboards.live_pictures`: what the live page looks like, from the demo in a real Chromium.

It plays the demo, waits for its story, and takes pictures of the page: calm, on a narrow screen, and after
PostgreSQL was stopped. It needs what the tests need: playwright, and a Chromium.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from dashboards.browser import launched

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"

_NARROW, _WIDE = {"width": 420, "height": 900}, {"width": 1280, "height": 860}
_SEEN_MS = 40_000
_PATIENT_MS = 180_000


def main() -> None:
    """Take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with _demo() as url, launched() as browser:
        page = _opened(browser, url, "dark", **_WIDE)
        page.get_by_text("The name was remembered in all").first.wait_for(timeout=_PATIENT_MS)
        page.wait_for_timeout(_SEEN_MS)  # so that the charts show something
        take(page, PICTURES / "live.png")
        narrow = _opened(browser, url, "light", **_NARROW)
        narrow.wait_for_timeout(5_000)
        take(narrow, PICTURES / "live-narrow.png")
        page.get_by_role("button", name=re.compile("^Stop PostgreSQL")).click()
        page.get_by_text("PostgreSQL is away.").first.wait_for(timeout=_PATIENT_MS)
        page.wait_for_timeout(8_000)
        page.evaluate("scrollTo(0, 0)")
        take(page, PICTURES / "live-fault.png")


def take(page: Page, file: Path) -> None:
    """Take a picture of what is in sight, and say how large it is."""
    page.screenshot(path=file)
    with Image.open(file) as image:  # a third of the size
        image.convert("RGB").quantize(128).save(file, optimize=True)
    sys.stdout.write(f"{file.name}: {file.stat().st_size // 1000} kB\n")


@contextmanager
def _demo() -> Iterator[str]:
    """Play the demo, and yield the address of its page."""
    argv = [sys.executable, "-u", "-m", "glasspoint", "demo", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            for line in demo.stdout:
                if found := re.search(r"http://\S+/live#token=\S+", line):
                    yield found[0]
                    break
        finally:
            demo.terminate()
            demo.stdout.read()


def _opened(browser: Browser, url: str, scheme: str, *, width: int, height: int) -> Page:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    return page


if __name__ == "__main__":
    main()
