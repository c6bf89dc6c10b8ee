"""The page in a real browser: upload, hide, complete, see the changed pixels."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip)")

BROWSER = next(
    filter(
        None, (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    ),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("web"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium"),
]
WAIT_MS = 60_000
# Pixels of a picture on the page, whatever its size there.
PIXELS_OF = """element => {
    const canvas = document.createElement("canvas");
    canvas.width = element.naturalWidth || element.width;
    canvas.height = element.naturalHeight || element.height;
    const context = canvas.getContext("2d");
    context.drawImage(element, 0, 0);
    return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.jpg"
    across, down = np.meshgrid(np.arange(300), np.arange(200))
    picture = np.stack([across * 255 // 300, down * 255 // 200, 0 * across + 60], -1)
    Image.fromarray(picture.astype(np.uint8)).save(path, quality=95)
    return path


@pytest.fixture
def page():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.asked_for, page.faults = [], []
        page.on("request", lambda request: page.asked_for.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        yield page
        browser.close()


def pixels(page, selector):
    values = np.array(page.locator(selector).first.evaluate(PIXELS_OF), np.uint8)
    side = round((len(values) / 4) ** 0.5)
    return values.reshape(side, side, 4)[..., :3]


def open_picture(page, address, photograph):
    page.goto(address)
    page.wait_for_selector("#complete")
    page.wait_for_function("document.querySelector('#painter canvas')?.width === 16")
    page.locator("input[type=file]").first.set_input_files(photograph)
    # The example that was there has no red in that corner.
    page.wait_for_function(
        "document.querySelector('#painter canvas').getContext('2d')"
        ".getImageData(15, 0, 1, 1).data[0] > 200"
    )


def test_a_picture_is_uploaded_hidden_and_completed(page, address, photograph):
    open_picture(page, address, photograph)
    before = pixels(page, "#painter canvas")
    box = page.locator("#painter canvas").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.2 * box["height"], steps=6)
    page.mouse.up()
    painted = pixels(page, "#painter canvas")
    hidden = (painted == painted[..., :1]).all(-1)  # greys; the photograph has none
    assert hidden[8:].all() and hidden[2:5, 4:9].all() and not hidden[7].any()
    assert (before[:8] != painted[:8]).any()

    page.click("#complete")
    page.wait_for_selector("#completions img >> nth=4")
    page.wait_for_function(
        "document.querySelectorAll('#completions img').length === 5"
        " && !document.querySelector('#completions .progress-text, #completions .wrap.generating')"
    )
    page.wait_for_timeout(1000)
    drawn = [pixels(page, f"#completions img >> nth={i}") for i in range(4)]
    for one in drawn:
        np.testing.assert_array_equal(one[~hidden], drawn[0][~hidden])
        assert len(np.unique(one[hidden], axis=0)) > 5
    assert (drawn[0][hidden] != drawn[1][hidden]).any()
    assert page.faults == []
    if place := os.environ.get("IGPT_SCREENSHOT"):
        page.screenshot(path=place, full_page=True)


def test_samples_and_surprise_are_shown(page, address, photograph):
    page.goto(address)
    page.get_by_role("tab", name="Sample").click()
    page.click("#sample")
    page.wait_for_selector("#samples img >> nth=15")
    page.get_by_role("tab", name="Surprise").click()
    page.locator("input[type=file]:visible, input[type=file]").last.set_input_files(photograph)
    page.wait_for_timeout(1500)
    page.click("#surprise")
    page.wait_for_selector("#surprise-result img >> nth=1")
    assert page.faults == []


def test_the_page_opens_with_a_picture_that_can_be_completed_at_once(page, address):
    page.goto(address)
    page.wait_for_function("document.querySelector('#painter canvas')?.width === 16")
    page.click("#complete")
    page.wait_for_selector("#completions img >> nth=4")
    assert page.faults == []


def test_what_is_no_image_is_refused_on_the_page(page, address, tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no picture")
    page.goto(address)
    page.wait_for_selector("#complete")
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_selector("text=the picture cannot be read: not an image")


def test_a_mask_that_hides_nothing_is_refused_on_the_page(page, address, photograph):
    open_picture(page, address, photograph)
    rows = page.get_by_label("number input for Rows to keep")
    rows.fill("16")
    rows.press("Tab")
    page.wait_for_function(
        "document.querySelector('#painter canvas').getContext('2d')"
        ".getImageData(0, 15, 1, 1).data[1] > 210"
    )
    page.click("#complete")
    page.wait_for_selector("text=the mask keeps every pixel: mark some as predicted")


def test_no_request_leaves_the_machine(page, address, photograph):
    open_picture(page, address, photograph)
    page.click("#complete")
    page.wait_for_selector("#completions img")
    inside = (address, "data:", "blob:")
    assert [url for url in page.asked_for if not url.startswith(inside)] == []


def test_a_closed_tab_leaves_the_page_to_others(page, address):
    other = page.context.browser.new_page()
    other.goto(address)
    other.get_by_role("tab", name="Sample").click()
    other.click("#sample")
    other.close()
    page.goto(address)
    page.wait_for_selector("#complete")
    page.click("#complete")
    page.wait_for_selector("#completions img >> nth=4")
