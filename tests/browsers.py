"""A real browser without a window, for the tests of report.html."""

import os
import pathlib

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
_SECONDS = 120  # a machine may be busy


class Browser:
    """Chromium, with what it says of the page that it shows."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in _FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))

    def open(self, path: os.PathLike, width: int = 1100, scheme: str = "light") -> None:
        """Shows a file, and waits until its figures are drawn."""
        self.driver.get_log("browser")  # of the page before
        self.command(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.driver.get(pathlib.Path(path).resolve().as_uri())
        self.wait(
            "return [...document.querySelectorAll('figure.drawn')]"
            ".every(figure => figure.dataset.state === 'drawn')"
        )

    def wait(self, script: str) -> None:
        """Waits until a script gives something true."""
        WebDriverWait(self.driver, _SECONDS, 0.05).until(lambda d: d.execute_script(script))

    def run(self, script: str, *arguments):
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that a selector finds, in one line each."""
        found = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )
        return [" ".join(text.split()) for text in found]

    def command(self, name: str, **options):
        """A command of the browser's developer tools."""
        return self.driver.execute_cdp_cmd(name, options)

    def messages(self) -> list[str]:
        """What is in the console since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        self.driver.quit()
