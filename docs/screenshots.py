"""The pictures of docs/, from the demo's root: python docs/screenshots.py runs/demo/demo.yaml

Needs Chromium and its driver (`apt-get install chromium chromium-driver`), which nothing else does.
"""

import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tokenmill.pipeline.config import load
from tokenmill.pipeline.looking.explorer.server import application
from tokenmill.pipeline.looking.report.report import write_report

DOCS = Path(__file__).resolve().parent
WIDTH_PX, HEIGHT_PX = 1240, 900
SLIDE = """const slider = document.querySelector("input[data-rule='sharp.0']");
slider.value = 500; slider.dispatchEvent(new Event("input"))"""


def picture(browser: webdriver.Chrome, address: str, name: str, script: str = "") -> None:
    """A page as the browser shows it."""
    browser.get(address)
    browser.execute_script(script)
    time.sleep(2)
    out = DOCS / name
    browser.save_screenshot(str(out))
    Image.open(out).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(out, optimize=True)


def main() -> None:
    config = load(sys.argv[1])
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH_PX},{HEIGHT_PX}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listening:
        page = Path(folder, "report.html")
        write_report(config, str(page))
        picture(browser, page.as_uri(), "report.png")
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(application(config, "t", frozenset({host})), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        picture(browser, f"http://{host}/?token=t&kind=image&verdict=kept&sort=sharpness", "explore.png")
        picture(browser, f"http://{host}/rules/image", "explore_rules.png", SLIDE)
        server.should_exit = True
        thread.join()
    browser.quit()


if __name__ == "__main__":
    main()
