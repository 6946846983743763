"""The page in a real browser: at two widths, by day and by night, with the keyboard. Screenshots stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from dovetail.report.page import PAGE
from tests.report.browser import Browser, browser, missing_browser

SCREENSHOTS = Path(__file__).parents[2] / "test-artefacts"
# Words of pictures that reach over the edge of their picture by more than a pixel.
CUT_OFF = """
return [...document.querySelectorAll('.plots svg text, .scroll svg text')].filter(text => {
  const words = text.getBoundingClientRect(), picture = text.closest('svg').getBoundingClientRect();
  return words.left < picture.left - 1 || words.right > picture.right + 1 || words.top < picture.top - 1
    || words.bottom > picture.bottom + 1;
}).map(text => text.textContent)"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing_browser()), reason=missing_browser() or "there is one")]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium with a fresh profile."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("run", ["slot_run", "query_run", "map_run", "comparison"])
def test_the_page_renders(
    run: str, width: int, scheme: Literal["light", "dark"], chromium: Browser, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    chromium.open(folder / PAGE if folder.is_dir() else folder, width=width, scheme=scheme)
    SCREENSHOTS.mkdir(exist_ok=True)
    shot = SCREENSHOTS / f"report-{run}-{width}-{scheme}.png"
    chromium.screenshot(shot)
    assert chromium.console() == []
    assert chromium.run("return document.documentElement.scrollWidth <= window.innerWidth")
    broken = "return [...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
    assert chromium.run(broken) == 0
    assert chromium.run("return document.querySelectorAll('.plots svg').length") >= 8
    assert chromium.run(CUT_OFF) == []
    fetched = "return performance.getEntriesByType('resource').map(one => one.name)"
    assert [name for name in chromium.run(fetched) if not name.startswith("data:")] == []
    image = Image.open(shot).convert("L")
    assert image.width == width
    corner = image.getpixel((2, 2))
    assert isinstance(corner, int | float)
    assert corner > 230 if scheme == "light" else corner < 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("run", ["slot_run", "map_run"])
def test_words_in_pictures_have_the_ink_of_the_page(
    run: str, scheme: Literal["light", "dark"], chromium: Browser, request: pytest.FixtureRequest
) -> None:
    chromium.open(request.getfixturevalue(run) / PAGE, width=1600, scheme=scheme)
    colours = chromium.run(
        "return [...document.querySelectorAll('.plots svg text, .scroll svg text')]"
        ".map(text => getComputedStyle(text).fill)"
    )
    ink = chromium.run("return getComputedStyle(document.body).color")
    assert len(colours) > 50
    assert set(colours) <= {ink, "rgb(0, 0, 0)"}  # black stands on white labels
    assert colours.count(ink) > 50


def test_the_map_answers_to_mouse_and_keys(map_run: Path, photos: Path, chromium: Browser) -> None:
    chromium.open(map_run / PAGE, width=1600, scheme="light")
    name = "return document.getElementById('map-name').textContent"
    place = chromium.run(
        "const point = document.querySelectorAll('.point')[4]; point.scrollIntoView({block: 'center'});"
        "const box = point.querySelector('use').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2, point.dataset.name]"
    )
    chromium.point(*place[:2])
    assert chromium.run(name) == place[2]
    assert chromium.run("return document.querySelector('.chosen-one img').naturalWidth") > 0
    chromium.run("document.getElementById('map-plot').focus()")
    seen = {place[2]}
    for key in 4 * ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"]:
        chromium.press(key)
        seen.add(chromium.run(name))
    assert len(seen) > 2
    assert seen <= {str(path) for path in photos.iterdir()}
    assert chromium.console() == []


def test_text_stands_out_from_its_ground(slot_run: Path, chromium: Browser) -> None:
    for scheme in ("light", "dark"):
        chromium.open(slot_run / PAGE, width=1600, scheme=scheme)
        colours = chromium.run(
            "const style = getComputedStyle(document.documentElement);"
            "return ['--page', '--card', '--ink', '--quiet', '--accent', '--good', '--warn', '--bad']"
            ".map(name => style.getPropertyValue(name).trim())"
        )
        ground, card, *inks = map(luminance, colours)
        for ink in inks:
            assert min(contrast(ink, ground), contrast(ink, card)) >= 4.5  # WCAG 2.2, level AA
        lines = chromium.run(
            "const style = getComputedStyle(document.documentElement);"
            "return [0, 1, 2, 3, 4, 5].map(number => style.getPropertyValue(`--line-${number}`).trim())"
        )
        for line in map(luminance, lines):
            assert contrast(line, card) >= 3  # the same for what is no text


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    """Return the contrast ratio of two luminances."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_keyboard_reaches_everything_and_copies(slot_run: Path, chromium: Browser) -> None:
    chromium.open(slot_run / PAGE, width=1600, scheme="light")
    seen = []
    for _ in range(40):
        chromium.press("Tab")
        name = chromium.run(
            "const one = document.activeElement;"
            "return one.id || one.getAttribute('aria-label')?.split(' (')[0] || one.textContent.trim().slice(0, 30)"
        )
        if name in seen:
            break
        seen.append(name)
    assert seen[0] == "Skip to content"
    assert {
        "Curves",
        "Slots of term encoder",
        "Slots of term decoder_p2",
        "example",
        "copy",
        "Run options (config.yaml)",
    } <= set(seen)
    chromium.run("document.getElementById('copy').focus()")
    chromium.press("Enter")
    for _ in range(50):
        said = chromium.run("return document.getElementById('copied').textContent")
        if said:
            break
        time.sleep(0.1)
    assert said in ("Copied.", "Selected; press Ctrl+C to copy.")
    assert chromium.console() == []
