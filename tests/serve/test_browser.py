"""`refine serve` end to end: the command in a separate process, and Chromium."""

import json
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and ChromeDriver"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs Gradio (extra `serve`)"),
]


pytest.importorskip("selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """URL of the page, served by the command until the tests end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "refine", "serve", "--checkpoint", "nuclei"]
    command += ["--port", str(port), "--device", "cpu"]
    path = tmp_path_factory.mktemp("serve") / "log"
    with path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + 120
        while b"open http" not in path.read_bytes():
            assert process.poll() is None, path.read_text()
            assert time.monotonic() < deadline, "the page does not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
        process.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{word}")
    options.add_argument("--window-size=1280,900")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def cells(tmp_path):
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    whole.crop((0, 0, 640, 480)).save(tmp_path / "cells.png")
    return tmp_path / "cells.png"


def rows(browser) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, "#viewer tbody tr"))


def drop(browser, address, path) -> int:
    """Upload an image; return the number of segments that the page displays."""
    browser.get(address)
    wait = WebDriverWait(browser, 120)
    wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#image input[type=file]")).send_keys(str(path))
    return wait.until(rows)


def test_drop_an_image_and_move_a_threshold(address, browser, cells):
    before = drop(browser, address, cells)
    assert before > 3
    wait = WebDriverWait(browser, 120)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#viewer .names span"))  # written by the page
    # Segments are accessible by keyboard through their rows.
    first = browser.find_element(By.CSS_SELECTOR, "#viewer tbody tr")
    first.send_keys(Keys.ARROW_DOWN)
    assert browser.find_elements(By.CSS_SELECTOR, "#viewer tr.on")[0] != first
    threshold = browser.find_element(By.CSS_SELECTOR, "#score input[type=number]")
    threshold.send_keys(Keys.CONTROL, "a")
    threshold.send_keys("1", Keys.TAB)
    wait.until(lambda b: 0 < rows(b) < before)
    assert rows(browser) == 1  # only the background is left
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    web = [url for url in urls if url.startswith(("http:", "https:", "ws:", "wss:"))]
    assert web
    assert all(url.startswith(address) for url in web), web


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(address, browser, cells, theme):
    """axe-core finds no critical or serious violations, with a result or an error on the page."""
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    address = f"{address}?__theme={theme}"
    drop(browser, address, cells)
    found = serious(axe.run(browser))
    cells.write_bytes(b"no image")
    browser.get(address)
    wait = WebDriverWait(browser, 120)
    wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#image input[type=file]")).send_keys(str(cells))
    wait.until(lambda b: "is not a supported image" in b.find_element(By.CSS_SELECTOR, "#viewer .error").text)
    found += serious(axe.run(browser))
    assert not found, "\n".join(found)


def serious(report) -> list[str]:
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:200]}"
        for violation in report["violations"]
        if violation["impact"] in ("critical", "serious")
        for node in violation["nodes"]
    ]
