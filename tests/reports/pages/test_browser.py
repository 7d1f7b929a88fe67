"""The page in a real Chromium: it works by mouse and keyboard, asks nothing of a network, and text is only text."""

import base64
import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.records import Flag, RunFailure
from reports.report import write_report

HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "</script><script>window.hacked=3</script>",
    "{{ 7*7 }}{% raw %}'\"`${7}",
    "bell\x07null\x00escape\x1b[31m",
    "x" * 10_000,
    "שלום עולם مرحبا",
    "evil\u202etxt.exe",
    "$\\frac{1}{0}$ $x",
    "javascript:alert(1)",
    "\ud800 lone",
    "=cmd|' /C calc'!A0",
]  # fmt: skip


@pytest.fixture(scope="module")
def host(zoo_report) -> Iterator["_Server"]:
    """The report on a static host, which the page must not ask for anything but itself."""
    with _Server(zoo_report) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def site(host) -> str:
    host.asked.clear()
    return host.url


class _Server(http.server.ThreadingHTTPServer):
    """A static host of a folder that remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # a page from the browser's cache asks the host for nothing
        super().end_headers()

    def log_message(self, *_: object) -> None:
        self.server.asked.append(self.path)


def _open(browser: Any, url: str, width: int = 1440, scheme: str = "light", media: str = "") -> None:
    browser.get("about:blank")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature], "media": media})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(url)


def _requests(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "chrome:", "about:"))]


def _overflows(browser: Any) -> bool:
    root = "document.documentElement"
    return browser.execute_script(f"return {root}.scrollWidth > {root}.clientWidth")


def _models(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('#b0 tbody tr:not([hidden]) th')].map((cell) => cell.textContent)"
    return browser.execute_script(script)


def _header(browser: Any, label: str) -> Any:
    return browser.find_element("xpath", f"//table[@id='b0']//th/button[contains(., '{label}')]")


def test_no_request_leaves_the_page_and_nothing_is_on_the_console(chromium, host, site) -> None:
    _open(chromium, f"{site}/index.html")
    assert _requests(chromium) == [f"{site}/index.html"]
    assert host.asked == ["/index.html"]
    assert chromium.get_log("browser") == []


def test_it_opens_from_disk(chromium, zoo_report) -> None:
    _open(chromium, (zoo_report / "index.html").as_uri())
    assert chromium.title.startswith("7 architectures on digits")
    assert chromium.get_log("browser") == []


def test_the_policy_lets_nothing_else_run_or_load(chromium, host, site) -> None:
    _open(chromium, f"{site}/index.html")
    chromium.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = '/leaderboard.md'; document.body.append(i);"
    )
    assert chromium.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in entry["message"] for entry in chromium.get_log("browser"))
    assert host.asked == ["/index.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows(chromium, site, width: int, scheme: str) -> None:
    _open(chromium, f"{site}/index.html", width, scheme)
    assert not _overflows(chromium)
    sticking_out = chromium.execute_script(
        "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg, pre') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert sticking_out == []


def test_columns_sort_by_mouse(chromium, site) -> None:
    _open(chromium, f"{site}/index.html")
    first = ["resnet50", "resnet18", "mobilenet_v1", "simple_cnn", "lenet5", "vit_tiny", "xception"]
    assert _models(chromium) == first
    _header(chromium, "Parameters").click()
    assert _models(chromium)[:5] == ["lenet5", "simple_cnn", "mobilenet_v1", "resnet18", "resnet50"]
    assert set(_models(chromium)[5:]) == {"vit_tiny", "xception"}
    _header(chromium, "Parameters").click()
    assert _models(chromium)[:2] == ["resnet50", "resnet18"]
    assert set(_models(chromium)[5:]) == {"vit_tiny", "xception"}  # what was not measured stays last
    header = _header(chromium, "Parameters").find_element("xpath", "..")
    assert header.get_attribute("aria-sort") == "descending"
    assert len(chromium.find_elements("css selector", "#b0 [aria-sort]")) == 1


def test_columns_sort_and_rows_filter_by_keyboard(chromium, site) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(chromium, f"{site}/index.html")
    button = _header(chromium, "Inference")
    chromium.execute_script("arguments[0].focus()", button)
    chromium.switch_to.active_element.send_keys(Keys.ENTER)
    assert _models(chromium)[0] == "lenet5"
    chromium.switch_to.active_element.send_keys(Keys.SPACE)
    assert _models(chromium)[0] == "resnet50"
    chromium.find_element("id", "filter").send_keys("RESNET")
    assert sorted(_models(chromium)) == ["resnet18", "resnet50"]
    assert chromium.find_element("id", "status").text == "2 of 7 models shown."
    chromium.find_element("id", "filter").send_keys(Keys.BACKSPACE * 6)
    assert len(_models(chromium)) == 7


def test_everything_can_be_reached_by_tab_and_shows_its_focus(chromium, site) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(chromium, f"{site}/index.html")
    seen = set()
    for _ in range(30):
        chromium.switch_to.active_element.send_keys(Keys.TAB)
        active = chromium.switch_to.active_element
        seen.add(active.get_attribute("id") or active.text or active.get_attribute("class"))
        assert active.value_of_css_property("outline-style") != "none"
    assert {"theme", "filter", "Leaderboard"} <= seen


def test_the_theme_follows_the_system_and_the_button(chromium, site) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.querySelector('svg.plot text')).fill"
    _open(chromium, f"{site}/index.html", scheme="dark")
    assert chromium.execute_script(ground) == "rgb(18, 23, 30)"
    assert chromium.execute_script(ink) == "rgb(230, 235, 241)"
    chromium.find_element("id", "theme").click()
    assert chromium.execute_script(ground) == "rgb(255, 255, 255)"
    assert chromium.execute_script(ink) == "rgb(29, 39, 51)"
    chromium.execute_script("localStorage.clear()")


def test_it_prints_light_and_whole(chromium, site) -> None:
    _open(chromium, f"{site}/index.html", width=800, scheme="dark", media="print")
    assert chromium.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not chromium.find_element("id", "theme").is_displayed()
    pdf = base64.b64decode(chromium.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(chromium, site, scheme: str) -> None:
    _open(chromium, f"{site}/index.html", scheme=scheme)
    assert _axe(chromium) == []


def _axe(browser: Any) -> list[str]:
    """Serious and critical faults by axe-core; injected through the debugger, which the page's policy does not bind."""
    try:
        import axe_selenium_python as package
    except ImportError:
        reason = "no axe-core: install the package axe-selenium-python"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    source = (Path(package.__file__).parent / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
    run = "axe.run().then((r) => JSON.stringify(r.violations))"
    answer = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": run, "awaitPromise": True})
    faults = json.loads(answer["result"]["value"])
    return [
        f"{fault['id']}: {fault['help']}: {node['html'][:120]}"
        for fault in faults
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A report on records whose every text is hostile."""
    from bench.records import save_record
    from tests.reports.conftest import record

    folder = tmp_path_factory.mktemp("hostile")
    for k, text in enumerate(HOSTILE):
        failed = k % 2 == 1
        one = record(
            text, k, run_id=f"hostile-{k}", status="failed" if failed else "completed",
            metrics={"test_top1": 0.5 + k / 99, "macs": 10 ** (k + 3), "throughput_img_per_s": 5.0, "activations": 7},
            config={"recipe": {"name": HOSTILE[0]}, "data": HOSTILE[1]} if k == 0 else {},
            environment={"data": {"name": "digits", "classes": HOSTILE[:4]}, "command": text, "machine": {"cpu": text}},
            samples={"test_confusion": [[5.0, 1.0, 0.0, 0.0]] * 4, "test_calibration": [[0.5, 0.4, 9]]},
            history=[{"epoch": 0, "seconds": 1.0, "val_top1": 0.3}, {"epoch": 1, "seconds": 2.0, "val_top1": 0.4}],
            flags=[] if "\ud800" in text else [Flag(kind=text, phase=text, message=text)],
            error=RunFailure(kind="E", message=text, traceback=text) if failed and "\ud800" not in text else None,
        )  # fmt: skip
        if "\ud800" in text:  # JSON can carry it; a file cannot
            raw = one.model_dump(mode="json") | {"run_id": f"hostile-{k}"}
            (folder / "runs" / f"hostile-{k}.json").write_text(json.dumps(raw))
        else:
            save_record(one, folder)
    write_report(folder, folder / "report", latex=True)
    return folder / "report"


@pytest.mark.parametrize("width", [390, 1440])
def test_hostile_text_is_shown_and_nothing_of_it_runs(chromium, hostile, width: int) -> None:
    _open(chromium, (hostile / "index.html").as_uri(), width)
    assert chromium.execute_script("return window.hacked") is None
    assert chromium.get_log("browser") == []
    assert not _overflows(chromium)
    assert chromium.execute_script("return document.querySelectorAll('main script, main img, main b').length") == 0
    text = chromium.execute_script("return document.body.textContent")
    for shown in (*HOSTILE[:4], "bell␇null␀escape␛[31m", "x" * 10_000, HOSTILE[6], "evil⟨U+202E⟩txt.exe", HOSTILE[8]):
        assert shown in text, shown[:40]
    assert _axe(chromium) == []


def test_no_column_is_cut_at_1440_pixels_and_no_card_is_stretched_by_its_neighbour(chromium, site) -> None:
    _open(chromium, site)
    assert chromium.find_element("css selector", ".board td.flag")
    cut = "return [...document.querySelectorAll('.board')].filter((b) => b.scrollWidth > b.clientWidth).length"
    assert chromium.execute_script(cut) == 0
    empty = """return [...document.querySelectorAll('figure')].map((figure) =>
        figure.getBoundingClientRect().bottom - figure.lastElementChild.getBoundingClientRect().bottom)"""
    assert max(chromium.execute_script(empty)) < 30


CLIPPED = """
const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
const inside = (e) => { for (let p = e; p; p = p.parentElement) if (scrolls(p)) return true; return false; };
const found = [];
for (const e of document.querySelectorAll("body *:not(svg *)")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !e.getClientRects().length || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
  const wide = getComputedStyle(e).display !== "inline" && e.scrollWidth > e.clientWidth + 1 && !scrolls(e);
  const out = e.getBoundingClientRect().right > innerWidth + 1 && !inside(e);
  if (wide || out) found.push(`${e.tagName}: ${e.textContent.trim().slice(0, 60)}`);
}
for (const e of document.querySelectorAll("svg.plot text")) {
  const [box, plot] = [e.getBoundingClientRect(), e.closest("svg").getBoundingClientRect()];
  if (box.left < plot.left - 1 || box.right > plot.right + 1) found.push(`in a figure: ${e.textContent}`);
}
return found;
"""
"""Texts that nobody can read to their end: wider than their element, off the screen, or beyond a figure's edge."""
PUBLISHED = sorted((Path(__file__).parents[3] / "results").glob("*/report/**/*.html"))


@pytest.mark.parametrize("width", [390, 1440])
def test_no_text_is_clipped_on_any_published_page(chromium, site, width: int) -> None:
    assert len(PUBLISHED) > 5
    for page in [f"{site}/index.html", *(path.as_uri() for path in PUBLISHED)]:
        _open(chromium, page, width)
        assert chromium.execute_script(CLIPPED) == [], page
        assert not _overflows(chromium), page


def test_a_clipped_text_would_be_found(chromium, site) -> None:
    _open(chromium, f"{site}/index.html")
    narrow = "const p = document.querySelector('.lede p'); p.style.width = '3rem'; p.style.overflow = 'hidden';"
    narrow += "p.style.whiteSpace = 'nowrap'; document.querySelector('svg.plot text').setAttribute('x', '-99');"
    chromium.execute_script(narrow)
    kinds = [found.split(":")[0] for found in chromium.execute_script(CLIPPED)]
    assert kinds == ["P", "in a figure"]


def test_no_published_page_shows_a_long_list_unless_it_is_unfolded(chromium) -> None:
    longest = "return Math.max(0, ...[...document.querySelectorAll('main ul, main ol')]"
    longest += ".filter((list) => !list.closest('details:not([open])')).map((list) => list.children.length))"
    panels = "return [...document.querySelectorAll('#provenance ~ .panel')].length"
    for page in PUBLISHED:
        _open(chromium, page.as_uri())
        assert chromium.execute_script(longest) <= 6, page
        assert chromium.execute_script(panels) <= 4, page


def test_a_layers_name_leaves_room_for_its_numbers_on_a_telephone(chromium) -> None:
    """The first column stays in sight while the others are scrolled, and no other does."""
    page = next(path for path in PUBLISHED if path.name == "resnet20.html")
    _open(chromium, page.as_uri(), 390)
    chromium.execute_script("document.querySelector('.board').scrollLeft = 1000")
    left = "return [...document.querySelectorAll('.board thead th')].map((cell) => cell.getBoundingClientRect().left)"
    first, kind, *_ = chromium.execute_script(left)
    assert first >= 0 > kind
    width = "return document.querySelector('.board tbody th').getBoundingClientRect().width"
    assert chromium.execute_script(width) < 390 * 0.45


def test_the_note_on_ranks_can_be_read_on_a_telephone(chromium, site) -> None:
    _open(chromium, site, 390)
    right = chromium.execute_script("return document.querySelector('caption span').getBoundingClientRect().right")
    assert right <= 390


def test_disturbances_are_folded_away(chromium, site) -> None:
    _open(chromium, site)
    details = chromium.find_element("css selector", "#provenance ~ .panel details")
    assert "5 of 17 runs disturbed while measured; what was noted" in details.text
    assert "others used 64%" not in details.text
    chromium.execute_script("arguments[0].open = true", details)
    assert "others used 64%" in details.text
