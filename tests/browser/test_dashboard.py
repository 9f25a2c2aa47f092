"""The dashboard of a stored run in a browser: it paints, it is clicked, every view follows."""

import time

from icrl_lab.studies import open_run

READY = ".icrl-view .js-plotly-plot .point"


def opened(page, address):
    page.goto(address[0])
    page.wait_for_selector(READY, timeout=90_000)
    return page


def test_it_paints_and_asks_nobody_outside(page, address):
    start = time.time()
    opened(page, address)
    print(f"first paint {time.time() - start:.1f} s")
    text = page.evaluate("document.body.textContent")
    assert "does the model use the vectors?" in text and "moments-vocab" in text and "Inside the model" in text
    assert page.locator(".icrl-view img[src^='data:image/svg']").count() >= 1  # the molecule is drawn


def test_a_choice_moves_every_view(page, address):
    opened(page, address)
    assert "arm moments-vocab" in page.inner_text("[role=status]")
    box = page.locator("select").filter(has=page.locator("option", has_text="moments-vocab")).first
    start = time.time()
    box.select_option("text")
    page.wait_for_function("document.querySelector('[role=status]').innerText.includes('arm text')", timeout=20_000)
    page.wait_for_function("document.body.textContent.includes('text, real')", timeout=20_000)
    print(f"choice to updated views {1000 * (time.time() - start):.0f} ms")


def test_a_click_on_a_point_pins_its_molecule(page, address, run):
    opened(page, address)
    before = page.inner_text("[role=status]")
    points = page.locator(".js-plotly-plot").nth(1).locator(".trace").last.locator(".point")
    large = page.locator(".js-plotly-plot").nth(1).locator(".scatterlayer .trace").nth(2).locator(".point")
    assert points.count() and large.count() >= 5
    drag = page.locator(".js-plotly-plot").nth(1).locator(".nsewdrag").first
    for place in range(large.count()):
        box, frame = large.nth(place).bounding_box(), drag.bounding_box()
        x, y = box["x"] + box["width"] / 2 - frame["x"], box["y"] + box["height"] / 2 - frame["y"]
        drag.click(position={"x": x, "y": y})
        page.wait_for_timeout(700)
        if page.inner_text("[role=status]") != before:
            break
    after = page.inner_text("[role=status]")
    assert after != before
    names = open_run(run).predictions["item"].unique()
    assert any(name in after for name in names)


def test_the_keyboard_reaches_the_controls(page, address):
    opened(page, address)
    page.locator("select").first.focus()
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.tagName"))
    assert "SELECT" in seen


def test_every_tab_shows_its_view(page, address):
    """Each question's own view paints, one after the other, and the selection stays."""
    opened(page, address)
    for name in ("attention", "geometry", "lens"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_function("document.body.textContent.includes('this cannot show')", timeout=60_000)
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .plot').length >= 3", timeout=60_000)
    assert "arm moments-vocab" in page.inner_text("[role=status]")


def test_the_prompt_is_read_and_pinned_by_keyboard(page, address):
    opened(page, address)
    chips = page.locator("[aria-label^='prompt;'] button")
    page.wait_for_selector("[aria-label^='prompt;'] button", timeout=30_000)
    assert chips.count() >= 5
    chips.nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('[role=status]').innerText.includes('item ')", timeout=20_000)


def test_a_wrong_token_is_not_let_in(page, address):
    reply = page.request.get(address[0].split("?")[0] + "?token=wrong", max_redirects=0)
    assert reply.status in (302, 401, 403)
