"""The page in Chromium, as Debian has it: sliders, keys, votes, the dark scheme; nothing is asked of other machines."""

import json
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tokenmill import storage
from tokenmill.pipeline.looking.explorer.server import application

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"),
]
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def address(root_of_markup, drawings):
    """Of a server in this process."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = application(root_of_markup, "secret", frozenset({f"127.0.0.1:{port}"}), drawings)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser(address):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get(f"{address}/?token=secret")
    yield driver
    driver.quit()


def until(holds):
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        with suppress(StaleElementReferenceException, IndexError):  # a page that is just being loaded again
            if found := holds():
                return found
        time.sleep(0.05)
    raise AssertionError("it did not come to hold")


def css(browser, selector):
    return browser.find_elements("css selector", selector)


def test_the_token_is_gone_from_the_address_and_the_grid_is_there(browser, address):
    assert browser.current_url == f"{address}/"
    until(lambda: len([image for image in css(browser, ".frame img") if image.get_property("naturalWidth") > 0]) >= 12)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("/preview/" in entry["message"] for entry in severe), severe


def test_keys_go_through_the_grid_vote_and_open(browser, address, root_of_markup):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(keys):
        ActionChains(browser).send_keys(keys).perform()

    browser.get(f"{address}/?kind=image&verdict=kept")
    press("jj")
    second = css(browser, ".card")[1]
    assert "at" in second.get_attribute("class")
    press("r")
    until(lambda: second.get_attribute("data-vote") == "reject")
    line = json.loads(storage.read_bytes(f"{root_of_markup.root}/votes/media.jsonl").splitlines()[-1])
    assert (line["media_id"], line["vote"]) == (second.get_attribute("data-id"), "reject")
    press(Keys.ENTER)
    until(lambda: "/medium/" in browser.current_url)
    press("a")
    until(lambda: "kept: keep" in css(browser, "[role=status]")[0].text)
    assert "<script>alert(1)" in css(browser, "dd")[0].text, "a caption is text"


def test_a_slider_says_what_would_change(browser, address):
    browser.get(f"{address}/rules/image")
    slide = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    slider = css(browser, "input[type=range]")[0]
    browser.execute_script(slide, slider, "105")
    until(lambda: css(browser, "#lost")[0].text == "2")
    assert css(browser, "#kept")[0].text == "5" and "takes 2 out of the tokens" in css(browser, "#cost")[0].text
    assert "large: min(width_px, height_px) >= 105" in css(browser, "#yaml")[0].text
    until(lambda: len(css(browser, "#lost-media li")) == 2)
    css(browser, ".back")[0].click()
    until(lambda: css(browser, "#lost")[0].text == "0")
    assert css(browser, "#yaml")[0].text == "move a threshold"


def test_two_drawings_are_compared_by_keys(browser, address, root_of_markup):
    from selenium.webdriver.common.action_chains import ActionChains

    Path(root_of_markup.root, "votes", "samples.jsonl").unlink(missing_ok=True)
    browser.get(f"{address}/samples")
    until(lambda: all(image.get_property("naturalWidth") == 32 for image in css(browser, ".samples img")))
    done = css(browser, ".faint")[1].text
    first, second = (side.get_attribute("data-sample") for side in css(browser, ".samples button"))
    ActionChains(browser).send_keys("2").perform()
    until(lambda: css(browser, ".faint")[1].text != done)
    line = json.loads(storage.read_bytes(f"{root_of_markup.root}/votes/samples.jsonl").splitlines()[-1])
    assert (line["chosen"], line["rejected"]) == (second, first)
    prompt = css(browser, "main p b")[0].text
    ActionChains(browser).send_keys("s").perform()
    until(lambda: "skip=1" in browser.current_url)
    assert css(browser, "main p b")[0].text != prompt


def test_a_caption_is_shown_under_what_goes(browser, address):
    browser.get(f"{address}/captions/source")
    slide = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(slide, css(browser, "input[type=range]")[0], "999")
    until(lambda: css(browser, "#lost")[0].text == "7")
    assert "<script>alert(1)" in css(browser, "#lost-media li")[0].text


def test_a_filter_is_an_address(browser, address):
    browser.get(address)
    css(browser, "select[name=verdict] option[value=large]")[0].click()
    css(browser, ".filters button")[0].click()
    until(lambda: "verdict=large" in browser.current_url)
    assert len(css(browser, ".card")) == 5


def test_it_is_dark_where_the_system_is(browser, address):
    def ground():
        return css(browser, "body")[0].value_of_css_property("background-color")

    browser.get(address)
    light = ground()
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    assert ground() != light
