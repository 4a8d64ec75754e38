"""The report's page in a real browser: on a phone, on a desk, in the dark, in print."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calibration_fixtures import simulated_profile, simulated_replay
from tests.controller.report.browser import Page, browser
from trt_mtp.controller.profile import write_profile
from trt_mtp.controller.report.report import read_report, render
from trt_mtp.controller.tasks import TASKS
from trt_mtp.files import to_json

WIDTHS = (360, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's page."""
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: all tasks, predicted cells, two profiles and a replay."""
    folder = tmp_path_factory.mktemp("report")
    left_out = [("qa", 3, 8), ("stem", 1, 1)]
    write_profile(folder / "a.json", simulated_profile(TASKS, left_out=left_out))
    write_profile(folder / "b.json", simulated_profile(["qa"], [0, 1], [1, 2]))
    (folder / "replay.json").write_text(to_json(simulated_replay()))
    (folder / "report.html").write_bytes(render(read_report(folder), "html"))
    return folder / "report.html"


OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true })"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(page: Page, report: Path, width: int) -> None:
    """Nothing leaves the page or its cell, with all tables open; wide tables scroll alone."""
    page.open(report, width=width)
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "[...document.querySelectorAll('svg, p, dl, h1, h2, figure, .scroll')].filter("
        f"one => one.getBoundingClientRect().right > {width}).map(one => one.outerHTML)"
    )
    cut = page.evaluate(
        "[...document.querySelectorAll(':is(th, td):not(.cards thead *)')].filter("
        "one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML)"
    )
    assert (beyond, cut) == ([], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_large_enough(page: Page, report: Path, width: int) -> None:
    """No text is smaller than 11 CSS pixels, in plots as they are scaled neither."""
    page.open(report, width=width)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.plot text')].map(one =>"
        " parseFloat(getComputedStyle(one).fontSize) *"
        " Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b)),"
        " ...[...document.querySelectorAll('p, td, th, small, summary')].map(one =>"
        " parseFloat(getComputedStyle(one).fontSize)))"
    )
    assert smallest >= 11


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Page, report: Path, scheme: str) -> None:
    """Text and the plots' colours reach WCAG's contrast (4.5 and 3 to 1) in light and dark."""
    page.open(report, width=1280, scheme=scheme)
    contrast = """(() => {
      const style = getComputedStyle(document.documentElement)
      const light = name => {
        const hex = style.getPropertyValue(name).trim()
        const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
          .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05
      }
      const over = (a, b) => Math.max(light(a), light(b)) / Math.min(light(a), light(b))
      return Object.fromEntries(['--ink', '--muted', '--link', '--s0', '--s1', '--s2', '--s3',
        '--s4', '--s5', '--s6'].map(name => [name, over(name, '--paper')]))
    })()"""
    found = page.evaluate(contrast)
    assert all(found[name] >= 4.5 for name in ("--ink", "--muted", "--link"))
    assert all(ratio >= 3 for ratio in found.values())
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_no_request_leaves_the_page(page: Page, report: Path) -> None:
    """The page is whole by itself: nothing is asked for but the file, and nothing goes wrong."""
    page.requests.clear()
    page.errors.clear()
    page.open(report, width=1280)
    asked = {url for url in page.requests if not url.startswith("data:")}
    assert asked == {report.resolve().as_uri()}
    assert page.errors == []


def test_everything_has_a_name(page: Page, report: Path) -> None:
    """Each plot has an alternative text, each table a caption and heads for rows and columns."""
    page.open(report, width=1280)
    unnamed = "[...document.querySelectorAll('svg.plot')].filter(one => !one.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("document.querySelectorAll('svg.plot').length") > 4 * len(TASKS)
    bare = (
        "[...document.querySelectorAll('table')].filter(one => !one.caption ||"
        " !one.querySelector('th[scope=col]') || !one.querySelector('th[scope=row]')).length"
    )
    assert page.evaluate(bare) == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.querySelectorAll('h1').length") == 1


def test_it_prints(page: Page, report: Path) -> None:
    """Printing gives pages, light ones, whatever the screen's colours are."""
    page.open(report, width=1280, scheme="dark")
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") > 2
