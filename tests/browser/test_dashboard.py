"""The dashboard of a stored run in a browser: it paints, it is clicked, every view follows."""

import time

import pytest

from icrl_lab.studies import open_run

READY = ".icrl-view .js-plotly-plot .point"
PAINT = 12.0  # seconds to the first picture on two idle cores
ANSWER = 0.3  # seconds from a choice to updated views
SLACK = 4.0  # what a busy machine may add as a factor; a page that is broken takes forever, not four times as long
HEADINGS = {
    "prompt": "What the model is shown",
    "attention": "Where the model looks",
    "geometry": "Geometry: from the encoder to the last layer",
    "patching": "Patching",
    "lens": "this cannot show",
}


@pytest.fixture(scope="module")
def dash(chromium, address):
    """One page for the tests that only look and click: as one person would use it, one thing after the other."""
    page = chromium.new_page(viewport={"width": 1300, "height": 1800})
    page.set_default_navigation_timeout(120_000)
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector(READY)
    yield page
    page.close()


def status(page):
    return page.inner_text("[role=status] >> nth=0")


def test_it_paints_and_asks_nobody_outside(page, address):
    start = time.time()
    page.goto(address)
    page.wait_for_selector(READY)
    seconds = time.time() - start
    print(f"first paint {seconds:.1f} s")
    assert seconds < PAINT * SLACK
    text = page.evaluate("document.body.textContent")
    assert "does the model use the vectors?" in text and "moments-vocab" in text and "Inside the model" in text
    assert page.locator(".icrl-view img[src^='data:image/svg']").count() >= 1  # the molecule is drawn


def test_a_choice_moves_every_view(dash):
    assert "arm moments-vocab" in status(dash)
    box = dash.locator("select").filter(has=dash.locator("option", has_text="moments-vocab")).first
    taken = []
    for arm in ("text", "moments-vocab", "text", "moments-vocab"):
        start = time.time()
        box.select_option(arm)
        dash.wait_for_function("a => document.body.textContent.includes(`${a}, real`)", arg=arm)
        dash.wait_for_function("a => document.querySelector('[role=status]').innerText.includes('arm ' + a)", arg=arm)
        taken.append(time.time() - start)
        dash.wait_for_timeout(500)
    print(f"choice to updated views {[round(1000 * t) for t in taken]} ms")
    assert min(taken) < ANSWER * SLACK


def test_a_click_on_a_point_pins_its_molecule(dash, run):
    before = status(dash)
    plot = dash.locator(".js-plotly-plot").nth(1)
    large, drag = plot.locator(".scatterlayer .trace").nth(2).locator(".point"), plot.locator(".nsewdrag").first
    assert large.count() >= 5
    for place in range(large.count()):
        box, frame = large.nth(place).bounding_box(), drag.bounding_box()
        drag.click(
            position={"x": box["x"] + box["width"] / 2 - frame["x"], "y": box["y"] + box["height"] / 2 - frame["y"]}
        )
        dash.wait_for_timeout(700)
        if status(dash) != before:
            break
    assert status(dash) != before
    assert any(name in status(dash) for name in open_run(run).predictions["item"].unique())


def test_the_keyboard_reaches_the_controls(dash):
    dash.locator("select").first.focus()
    seen = set()
    for _ in range(12):
        dash.keyboard.press("Tab")
        seen.add(dash.evaluate("document.activeElement.tagName"))
    assert "SELECT" in seen


@pytest.mark.parametrize("name", ["attention", "geometry", "patching", "lens"])
def test_a_tab_shows_its_view(dash, name):
    arm = status(dash)
    dash.get_by_role("tab", name=name, exact=True).click()
    dash.get_by_text(HEADINGS[name]).first.wait_for(state="attached")
    # two figures of the study, and one at least of the tab
    dash.wait_for_function("[...document.querySelectorAll('.js-plotly-plot')].filter(p => p.offsetParent).length >= 3")
    assert status(dash) == arm


def test_a_lasso_in_the_maps_selects_for_the_page(dash):
    dash.get_by_role("tab", name="geometry", exact=True).click()
    dash.wait_for_selector(".icrl-field")
    lasso(dash, 0, 0.55)
    dash.wait_for_function("document.querySelector('[role=status]').innerText.includes('items ')")
    dash.get_by_role("button", name="clear").click()
    dash.wait_for_function("!document.querySelector('[role=status]').innerText.includes('items ')")


def test_a_click_on_a_cell_of_the_patching_map_moves_the_layer(dash):
    dash.get_by_role("tab", name="patching", exact=True).click()
    plot = dash.locator(
        ".widget-tab-contents .js-plotly-plot:visible, .jupyter-widget-tab-contents .js-plotly-plot:visible"
    ).first
    plot.wait_for()
    before, frame = status(dash), plot.locator(".nsewdrag").first
    box = frame.bounding_box()
    for share in (0.9, 0.6, 0.3):
        frame.click(position={"x": box["width"] * share, "y": box["height"] * 0.3})
        dash.wait_for_timeout(800)
        if status(dash) != before:
            break
    assert status(dash) != before and "layer" in status(dash)


def test_the_prompt_is_read_and_pinned_by_keyboard(dash):
    dash.get_by_role("tab", name="prompt", exact=True).click()
    chips = dash.locator("[aria-label^='prompt;'] button")
    chips.first.wait_for()
    assert chips.count() >= 5
    chips.nth(1).focus()
    dash.keyboard.press("Enter")
    dash.wait_for_function("document.querySelector('[role=status]').innerText.includes('item ')")


def test_a_wrong_token_is_not_let_in(page, address):
    reply = page.request.get(address.split("?")[0] + "?token=wrong", max_redirects=0)
    assert reply.status in (302, 401, 403)


def lasso(page, panel, share):
    """Around the points in the upper left `share` of a map, by hand."""
    box = page.locator(".icrl-field").nth(panel).bounding_box()
    x, y, w, h = box["x"], box["y"], box["width"], box["height"]
    page.mouse.move(x + 1, y + 1)
    page.mouse.down()
    for across, down in ((share, 0), (share, share), (0, share), (0, 0.02)):
        page.mouse.move(x + 1 + w * across, y + 1 + h * down, steps=4)
    page.mouse.up()
