"""`refine serve` as a visitor meets it: the command as a process of its own, and Chromium."""

import json
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and ChromeDriver"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs Gradio (extra `serve`)"),
]


@pytest.fixture
def address(tmp_path):
    """Of the page, served by the command until the test ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "refine.cli.main", "serve", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + 120
        while b"open http" not in (tmp_path / "log").read_bytes():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "the page does not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
        process.terminate()


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{word}")
    options.add_argument("--window-size=1280,900")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_drop_a_picture_and_move_a_threshold(address, browser, tmp_path):
    from PIL import Image
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    mahotas = pytest.importorskip("mahotas")
    picture = tmp_path / "cells.png"
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    whole.crop((0, 0, 640, 480)).save(picture)
    wait = WebDriverWait(browser, 120)
    browser.get(address)
    upload = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#picture input[type=file]"))
    upload.send_keys(str(picture))

    def rows(b):
        return len(b.find_elements(By.CSS_SELECTOR, "#viewer tbody tr"))

    before = wait.until(rows)
    assert before > 3
    threshold = browser.find_element(By.CSS_SELECTOR, "#score input[type=number]")
    threshold.send_keys(Keys.CONTROL, "a")
    threshold.send_keys("1", Keys.TAB)
    wait.until(lambda b: 0 < rows(b) < before)
    assert rows(browser) == 1  # only the background is left
    browser.save_screenshot(str(tmp_path / "page.png"))
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    web = [url for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))]
    assert web
    assert all(url.startswith(address) for url in web), web
