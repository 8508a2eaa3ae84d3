"""A real headless Chromium for the tests of the report's page: a file from disk, at a width, light or dark.

    with chromium() as browser:
        browser.open(path, width=400, scheme="dark")
        assert browser.errors() == []

`browser.driver` is selenium's (find_element, ActionChains …). Tests are skipped where Chromium or its driver is not
installed (Debian: chromium and chromium-driver).
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Loads a file; `scheme` is what the system prefers, light or dark. Messages of an earlier page are dropped."""
        self._tell(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._tell("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")  # so that a #fragment does not make it a jump inside the page
        self.errors()
        self.driver.get(path.resolve().as_uri())

    def errors(self) -> list[str]:
        """Messages of the console that are warnings or errors, since the last call; refused content is among them."""
        return [
            f"{entry['level']}: {entry['message']}"
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def run(self, script: str, *arguments: Any) -> Any:
        """What the JavaScript returns; it reads its arguments from `arguments`."""
        return self.driver.execute_script(script, *arguments)

    def overflow(self) -> int:
        """Pixels that the page is wider than its window: 0, or it scrolls sideways."""
        return self.run(
            "const e = document.scrollingElement; return Math.max(0, e.scrollWidth - e.clientWidth)"
        )

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the whole page, or of what the window shows."""
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self._tell("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self._tell("Page.captureScreenshot", options)["data"]))

    def _tell(self, command: str, values: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(command, values)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts it, about a second, and ends it; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    helper = shutil.which("chromedriver")
    if binary is None or helper is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (
        "headless=new",
        "disable-gpu",
        "hide-scrollbars",
        "disable-dev-shm-usage",
        "disable-background-networking",
    ):
        options.add_argument(f"--{switch}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # its sandbox refuses root, as in a container
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=helper))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
