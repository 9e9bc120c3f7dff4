"""The web page of a mount that has everything, as Chromium shows it: wide and on a phone, light and dark."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from luxfuse.config import Settings
from luxfuse.control import web
from luxfuse.daemon import logs
from luxfuse.daemon.web import WebPage
from tests.support import browser
from tests.support.browser import Browser
from tests.unit.control.samples import sample_status

GIB = 1 << 30
LONG = "run-2026-11-30T14-05-09/" + "checkpoint-of-a-model-with-a-very-long-name" * 4 + ".safetensors"
MARKUP = "<img src=x onerror=document.title='taken'>"
SAMPLES = 30

SECTIONS = "[...document.querySelectorAll('.card:not(.tile)')].map((e) => e.querySelector('h2').textContent)"
SECTION = "[...document.querySelectorAll('.card')].find((e) => (e.querySelector('h2')?.textContent + ' ').match({}))"
CONTRASTS = """
(() => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (c) => [.2126, .7152, .0722].reduce((sum, part, i) => {
    const v = c[i] / 255;
    return sum + part * (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  }, 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3]) return c;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || e.closest("script")) continue;
    const style = getComputedStyle(e), ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    found[`${e.tagName} ${e.className.baseVal ?? e.className} ${e.textContent.slice(0, 20)}`] = (a + .05) / (b + .05);
  }
  return found;
})()
"""
"""How much the text of each element stands out from what is behind it, as WCAG counts it."""
OUTSIDE = """
[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll") && !e.closest("svg"))
  .filter((e) => [e.getBoundingClientRect()].some((b) => b.width && (b.left < -1 || b.right > innerWidth + 1)))
  .map((e) => e.outerHTML.slice(0, 100))
"""


def status(number: int) -> dict[str, Any]:
    """The status of a mount that has everything, at sample ``number``."""
    document: dict[str, Any] = json.loads(json.dumps(sample_status()))
    document["state"] = "degraded"
    document["degraded_reasons"] = [f"uploads fail: {LONG}: {MARKUP}"]
    document["tiers"] = [
        {"name": "mem", "path": "/dev/shm/lux", "capacity_bytes": GIB, "used_bytes": GIB // 4, "state": "serving"},
        {
            "name": "ssd",
            "path": "/nvme0/lux",
            "capacity_bytes": 4 * GIB,
            "used_bytes": number * GIB // 10,
            "state": "serving",
        },
        {"name": "hdd", "path": "/data/lux", "capacity_bytes": 8 * GIB, "used_bytes": 2 * GIB, "state": "failing"},
    ]
    for name, each_s in {"memory_bytes": 8, "ssd_bytes": 4, "hdd_bytes": 2, "peer_bytes": 2, "understore_bytes": 3,
                         "dataplane_bytes": 1}.items():  # fmt: skip
        document["reads"][name] = each_s * number << 21
    document["reads"] |= {
        "passthrough_opens": 9000 * number,
        "copied_opens": 600 * number,
        "dataplane_opens": number**2 * 100,
    }
    document["understore"] |= {"get_bytes": 6 * number << 20, "put_bytes": 2 * number << 20, "errors": number}
    document["fuse"]["requests"] = 500 * number
    document["cache"] |= {"objects": 12_345, "evicted_bytes": 3 * GIB, "pinned_bytes": GIB}
    document["dirty"] |= {"files": 7, "bytes": 700 << 20, "deletes": 1}
    for side, kind in (("fuse", "read"), ("understore", "get")):
        document["latency"][side][kind]["buckets"] = [50 * number, 30 * number, number]
        document["latency"][side][kind]["count"] = 81 * number
    return document


@pytest.fixture(scope="module")
def page() -> WebPage:
    """A page that has sampled such a mount for a minute, whose clock a test turns on: ``page.turn()``."""
    settings = Settings(source="s3://bucket", mountpoint="/mnt/bucket", cache_dirs=(), state_dir="/s", http="127.0.0.1:0")
    running: Any = SimpleNamespace(parts=SimpleNamespace(operations=SimpleNamespace(volumes=None)), http=None)
    numbers = iter(range(1, 10_000))
    made = WebPage(settings, running, lambda: status(next(numbers)))
    files = [
        (MARKUP, 3, 5 << 20, 10 << 20),
        (LONG, 20, 0, 3 * GIB),
        *((f"images/{n}.jpg", n, n << 12, n << 14) for n in range(9)),
    ]
    busy = [dict(zip(("path", "opens", "read_bytes", "size"), each, strict=True)) for each in files]
    made._busy = SimpleNamespace(top=lambda most: busy[:most])  # type: ignore[assignment]
    for _ in range(SAMPLES):
        turn(made)
    return made


def turn(page: WebPage) -> None:
    """Let two seconds pass on the clocks of a page, and a minute on that of its day."""
    page.clock_s = now_s = getattr(page, "clock_s", 0.0) + 60.0  # type: ignore[attr-defined]
    page._document = page._make()
    page._made.clear()
    for ring in page._rings.values():
        ring.feed(now_s, time.time() + now_s, page._document)


@pytest.fixture(scope="module")
def url(page: WebPage) -> Iterator[str]:
    """Where the page is served, with a warning and an error in its log."""
    kept, handler, listener, serving = (
        logging.getLogger().handlers[:],
        logs.Recent(),
        web.listen("127.0.0.1:0"),
        trio.Event(),
    )
    for level, event in ((logging.WARNING, f"uploads fail: {LONG}"), (logging.ERROR, f"a wrong page of {MARKUP}\x1b[31m")):
        handler.emit(logging.LogRecord("luxfuse", level, "", 0, event, None, None))
    logging.getLogger().addHandler(handler)

    async def serve() -> None:
        page.token = trio.lowlevel.current_trio_token()  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(web.serve, listener, page, None)
            await serving.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    page.token.run_sync_soon(serving.set)  # type: ignore[attr-defined]
    thread.join()
    logging.getLogger().handlers = kept


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := browser.missing():
        pytest.skip(reason)
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


def section_of(title: str) -> str:
    """Return the expression for the section whose title begins with these words."""
    return SECTION.format(json.dumps(rf"^{title}\b(?!,)"))


def text_of(chromium: Browser, title: str) -> str:
    return str(chromium.evaluate(f"{section_of(title)}.innerText"))


def counted(chromium: Browser, title: str, selector: str) -> int:
    return int(chromium.evaluate(f"{section_of(title)}.querySelectorAll({json.dumps(selector)}).length"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_every_section_is_shown(chromium: Browser, url: str, width: int, dark: bool, tmp_path: Path) -> None:
    chromium.complaints.clear()
    chromium.show(url, width=width, dark=dark, touch=width < 500)
    chromium.until(f"Number(document.body.dataset.ready) >= {SAMPLES - 1}")
    chromium.screenshot(tmp_path / f"page-{width}-{'dark' if dark else 'light'}.png")
    assert chromium.evaluate("document.title") == "/mnt/bucket · luxfuse"
    header = chromium.evaluate("document.querySelector('header').innerText").split("\n")
    assert header[:2] == ["/mnt/bucket", "degraded"]
    assert header[2].startswith("s3://bucket · passthrough · up 1 h 1 min")
    assert MARKUP in chromium.evaluate("document.querySelector('#told').innerText")
    tiles = chromium.evaluate("document.querySelector('#tiles').innerText")
    check_tiles(tiles)
    check_charts(chromium)
    check_tables(chromium)
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nobody scrolls sideways"
    assert chromium.evaluate(OUTSIDE) == []
    background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 19, 23)" if dark else "rgb(245, 246, 248)")
    assert {text: ratio for text, ratio in chromium.evaluate(CONTRASTS).items() if ratio < 4.5} == {}
    assert chromium.complaints == []


def check_tiles(text: str) -> None:
    assert "read through the daemon" in text
    assert "75 %" in text, "15 of 20 MiB/s came from the cache"
    assert "700 MiB\nof 7 files, 1 delete not uploaded yet" in text


def check_charts(chromium: Browser) -> None:
    for title, kind, labels in (
        ("Reads by source", "polygon", "memory SSD HDD data plane store nodes"),
        ("Opens", "polyline", "passthrough copied data plane"),
        ("Traffic with the store", "polyline", "received sent"),
        ("Requests of programs", "polyline", "p50 p95 p99"),
        ("Requests to the store", "polyline", "p50 p95 p99"),
        ("Not in the store yet", "polyline", "dirty"),
        ("Cached, by tier", "polygon", "memory SSD HDD"),
    ):
        text = text_of(chromium, title)
        wanted = labels.replace("data plane", "dataplane").split()
        assert counted(chromium, title, kind) == len(wanted), title
        assert [label for label in wanted if label.replace("dataplane", "data plane") not in text] == []
    assert "dirty 700 MiB" in text_of(chromium, "Not in the store yet")
    assert "HDD 2.00 GiB" in text_of(chromium, "Cached, by tier")


def check_tables(chromium: Browser) -> None:
    cache = text_of(chromium, "Cache")
    for line in ("mem 256 MiB of 1.00 GiB serving", "/nvme0/lux", "hdd 2.00 GiB of 8.00 GiB failing", "3.00 GiB evicted"):
        assert line in cache
    assert counted(chromium, "Cache", "progress") == 3
    assert chromium.evaluate("document.querySelector('progress').position") == 0.25
    latency = text_of(chromium, "Latency since the mount")
    assert "programs: read" in latency
    assert "store: get" in latency
    files = text_of(chromium, "Busiest files")
    assert [name for name in (MARKUP, LONG, "images/8.jpg", "3.00 GiB") if name not in files] == []
    stores = text_of(chromium, "Mounted stores")
    assert [word for word in ("/data/more", "s3://other", "unreachable") if word not in stores] == []
    peers = text_of(chromium, "Other nodes")
    assert [word for word in ("host-1", "alive", "suspect", "dead", "20 ms") if word not in peers] == []
    events = text_of(chromium, "Recent warnings and errors")
    assert [word for word in (f"uploads fail: {LONG}", MARKUP, "warning", "error") if word not in events] == []
    assert events.index(MARKUP) < events.index(LONG), "the newest first"
    known = {
        "Reads",
        "Opens",
        "Traffic",
        "Requests",
        "Not",
        "Cached,",
        "Cache",
        "Latency",
        "Busiest",
        "Mounted",
        "Other",
        "Recent",
    }
    assert {title.split()[0] for title in chromium.evaluate(SECTIONS)} == known, "a section that no test looks at"


def test_a_longer_time_is_shown_when_asked_for(chromium: Browser, url: str) -> None:
    chromium.show(url, width=1280)
    chromium.until("document.body.dataset.ready")
    with_day = "performance.getEntriesByType('resource').some((e) => e.name.endsWith('span=1d'))"
    assert not chromium.evaluate(with_day)
    chromium.evaluate("document.querySelector('[data-span=\"1d\"]').click()")
    chromium.until(with_day)
    assert chromium.evaluate("document.querySelector('[aria-pressed=true]').dataset.span") == "1d"


def test_charts_of_one_value_say_why_they_are_empty(chromium: Browser, url: str) -> None:
    """As the day has it in its first minute."""
    chromium.show(url, width=1280)
    chromium.until("document.body.dataset.ready")
    shown = chromium.evaluate("""
        (() => {
          const series = Object.entries(history_.series).map(([name, values]) => [name, values.slice(-1)]);
          history_ = { ...history_, times: history_.times.slice(-1), series: Object.fromEntries(series) };
          const charts = [...document.querySelectorAll("[data-chart]")];
          return charts.map((each) => { again(each); return each.querySelector("svg").textContent; });
        })()
    """)
    assert len(shown) == 7
    assert [text for text in shown if "from the second value on" not in text] == []


def test_what_waits_is_told_by_number(chromium: Browser, url: str) -> None:
    chromium.show(url, width=1280)
    told = [chromium.evaluate(f"waiting({{ files: {files}, deletes: {deletes} }})") for files, deletes in
            ((0, 0), (1, 0), (0, 2), (3, 1))]  # fmt: skip
    assert told == [f"{what}not uploaded yet" for what in ("", "of 1 file ", "of 2 deletes ", "of 3 files, 1 delete ")]


@pytest.mark.parametrize("touch", [True, False])
def test_a_pointer_shows_a_moment_and_goes(chromium: Browser, url: str, page: WebPage, touch: bool) -> None:
    """While it is there the chart stays; afterwards what is new is shown, on a phone as well, where :hover would stay."""
    chromium.show(url, width=390 if touch else 1280, touch=touch)
    chromium.until("document.body.dataset.ready")
    section = section_of("Opens")
    x, y = chromium.evaluate(
        f"(() => {{ const s = {section}.querySelector('svg'); s.scrollIntoView({{ block: 'center' }});"
        "const b = s.getBoundingClientRect(); return [b.left + b.width / 2, b.top + 50]; })()"
    )
    if touch:
        chromium.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        chromium.ask("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + 20, "y": y}])
    else:
        chromium.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    chromium.until(f"{section}.querySelector('.cursor')")
    shown = chromium.evaluate(f"{section}.innerHTML")
    ready = chromium.evaluate("Number(document.body.dataset.ready)")
    page.token.run_sync_soon(turn, page)  # type: ignore[attr-defined]
    chromium.until(f"Number(document.body.dataset.ready) > {ready}")
    assert chromium.evaluate(f"{section}.innerHTML") == shown
    if touch:
        chromium.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    else:
        chromium.ask("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    chromium.until(f"!{section}.querySelector('.cursor')")
