"""A real browser on MLflow's pages: it talks to one server, and what goes wrong is collected."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 800
TIMEOUT = 60_000  # milliseconds; a busy machine is slow
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Part of an error that MLflow's own pages print, or of the address it is about.
ALLOWED = (
    "/mlflow/users/current",  # who is logged in: a server without accounts does not know
    # The charts change their size while they are drawn; the rest is drawn in the next frame.
    "ResizeObserver loop completed with undelivered notifications",
)


def find_browser() -> str | None:
    """Return the path of a browser of this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Pages:
    """A window of a browser.

    Args:
        page: Playwright's page.
        folder: Where pictures go.
        errors: What went wrong in the browser so far.
    """

    def __init__(self, page, folder: Path, errors: list[str]) -> None:
        self.page, self.folder, self.errors = page, folder, errors

    def picture(self, name: str, height: int) -> None:
        """Save what the window shows, down to `height`."""
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
        file = self.folder / f"{name}.png"
        self.page.screenshot(path=file, clip=clip, animations="disabled")


@contextlib.contextmanager
def open_browser(address: str, profile: Path, pictures: Path):
    """Open a new window, for the length of a block; only `address` can be reached."""
    errors = []

    def note(text: str, url: str) -> None:
        elsewhere = url.startswith("http") and not url.startswith(f"{address}/")
        if not elsewhere and not any(part in f"{text} {url}" for part in ALLOWED):
            errors.append(f"{text} ({url})")

    def route(asked) -> None:
        if asked.request.url.startswith(f"{address}/"):
            asked.continue_()
        else:
            asked.abort()

    profile.mkdir()
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=find_browser(),
            args=QUIET,
            env={**os.environ, "HOME": str(profile)},
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
            locale="en-US",
            timezone_id="UTC",
            service_workers="block",
        )
        context.set_default_timeout(TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        context.route("**/*", route)
        page = context.new_page()
        page.on("console", lambda m: m.type == "error" and note(m.text, m.location["url"]))
        page.on("pageerror", lambda error: note(str(error), page.url))
        try:
            yield Pages(page, pictures, errors)
        finally:
            context.close()
