"""A real browser for tests: Chromium, without a window, driven by Playwright."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="module")  # modules import it, each its own, and Playwright runs once at a time
def chromium() -> Iterator[object]:
    """A running `playwright.sync_api.Browser`; tests open contexts and pages of their own."""
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if executable is None:
        pytest.skip("there is no Chromium on this machine: install it (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield browser
        browser.close()


CAMERA_OPTIONS = [
    "--use-fake-device-for-media-stream",  # a green picture in which something turns
    "--use-fake-ui-for-media-stream",  # and who is asked for it says yes
    "--host-resolver-rules=MAP memvit.test 127.0.0.1",  # a name that, unlike localhost, browsers do not trust without https
]


@pytest.fixture(scope="module")
def chromium_with_camera(chromium: Any) -> Iterator[object]:
    """A second `playwright.sync_api.Browser`, one that has a camera; modules import `chromium` as well."""
    browser = chromium.browser_type.launch(
        executable_path=next(filter(None, map(shutil.which, EXECUTABLES))), args=[*OPTIONS, *CAMERA_OPTIONS]
    )
    yield browser
    browser.close()
