"""The page in headless Chromium with the network cut: every request goes to a listener that writes it down."""

import os
import re
import shutil
import socketserver
import subprocess
import threading
import time
from typing import get_args

import pytest

from glprune.report.html import render_html
from glprune.schema.recipe import Domain
from tests.unit.report.test_html import HOSTILE, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: the page was not opened in a browser"
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-pdf-header-footer",
)
# what a browser asks its maker for, whatever page is open; no page below may name such a host
OWN = re.compile(r"^(?:(?:GET|POST) http://|CONNECT )(?:[a-z0-9-]+\.)*(?:google|googleapis|gstatic)\.com[:/]")
OUTSIDE = "http://outside.invalid"
REACHING_OUT = (
    f'<img src="{OUTSIDE}/image.png"><iframe src="{OUTSIDE}/frame.html"></iframe>'
    f'<link rel="stylesheet" href="{OUTSIDE}/style.css"><script src="{OUTSIDE}/script.js"></script>'
    f'<style>@import "{OUTSIDE}/import.css"; body {{ background: url("{OUTSIDE}/back.png"); }}</style>'
    f'<svg><image href="{OUTSIDE}/picture.png" width="9" height="9"></image></svg>'
    f'<script>document.title = "ran"; fetch("{OUTSIDE}/fetched");</script>'
)


class Listener(socketserver.ThreadingTCPServer):
    """A proxy that reads the first line of every request and answers nothing."""

    def __init__(self):
        self.heard = []
        super().__init__(("127.0.0.1", 0), Note)

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *error):
        time.sleep(0.3)  # what was sent last is still to be read
        self.shutdown()
        self.thread.join()
        self.server_close()


class Note(socketserver.StreamRequestHandler):
    timeout = 5

    def handle(self):
        line = self.rfile.readline(1000).decode("latin-1").strip()
        if line and not OWN.match(line):  # a browser that ends leaves connections on which it asked nothing
            self.server.heard.append(line)


class Browser:
    def __init__(self, folder):
        self.folder = folder

    def run(self, html, *flags):
        """Open a page; give standard output and the requests that were heard of it."""
        assert not re.search(r"(?:google|googleapis|gstatic)\.com", html)
        (self.folder / "page.html").write_text(html, encoding="utf-8")
        home = {**os.environ, "HOME": str(self.folder)}
        with Listener() as listener:
            command = [
                CHROMIUM,
                *QUIET,
                f"--user-data-dir={self.folder / 'profile'}",
                f"--proxy-server=http://127.0.0.1:{listener.server_address[1]}",
                "--proxy-bypass-list=<-loopback>",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                *flags,
                (self.folder / "page.html").as_uri(),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=home)
        return done.stdout, listener.heard

    def pages(self, html):
        """Print a page to PDF; give the sheets' sizes in points."""
        target = self.folder / "page.pdf"
        target.unlink(missing_ok=True)
        _, heard = self.run(html, f"--print-to-pdf={target}")
        assert heard == []
        raw = target.read_bytes()
        assert raw.startswith(b"%PDF")
        boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", raw)
        assert len(boxes) == len(re.findall(rb"/Type /Page\b(?!s)", raw))
        return [(round(float(width)), round(float(height))) for width, height in boxes]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page():
    return render_html(report([*HOSTILE, *(f"feature_{i}" for i in range(60))], removed=40))


@pytest.mark.slow
def test_the_listener_hears_a_page_that_reaches_out(browser):
    _, heard = browser.run(f"<!doctype html><title>still</title>{REACHING_OUT}", "--dump-dom")
    wanted = ("image.png", "frame.html", "style.css", "script.js", "import.css", "back.png", "picture.png")
    assert [name for name in wanted if not any(f"{OUTSIDE}/{name}" in line for line in heard)] == []


@pytest.mark.slow
def test_no_request_leaves_the_page(browser, page):
    dom, heard = browser.run(page, "--dump-dom")
    assert "Not measured" in dom
    assert dom.count("<svg") == page.count("<svg") == 3
    assert heard == []


@pytest.mark.slow
def test_the_policy_of_the_page_holds_back_whatever_else_gets_into_it(browser, page):
    start = page.index("<header>")
    dom, heard = browser.run(page[:start] + REACHING_OUT + page[start:], "--dump-dom")
    assert f"{OUTSIDE}/image.png" in dom
    assert "<title>ran</title>" not in dom
    assert heard == []


@pytest.mark.slow
def test_it_prints_on_a4_with_the_findings_on_one_sheet(browser, page):
    sheets = browser.pages(page)
    assert set(sheets) == {(595, 842)}
    findings = page[: page.index("</main>")] + "</main></body></html>"
    assert len(browser.pages(findings)) == 1
    assert len(sheets) > 3


@pytest.mark.slow
@pytest.mark.parametrize("domain", get_args(Domain))
def test_the_regulations_of_a_domain_print_on_one_sheet(domain, browser):
    """With the rules of every jurisdiction, and all their evidence missing from the report."""
    page = render_html(report(HOSTILE).model_copy(update={"domain": domain}), pictures=False)
    section = page[: page.index("</head>")] + "</head><body>" + page[page.index('<h2 id="rules">') :]
    assert len(browser.pages(section)) == 1


@pytest.mark.slow
def test_what_is_folded_on_the_screen_is_printed(browser, page):
    rule = re.search(r"^ *details::details-content .*\n", page, re.MULTILINE)[0]
    assert len(browser.pages(page)) > len(browser.pages(page.replace(rule, "")))


@pytest.mark.slow
def test_it_is_drawn_on_the_screen(browser, page):
    target = browser.folder / "page.png"
    _, heard = browser.run(page, f"--screenshot={target}", "--window-size=1100,1600")
    assert heard == []
    assert target.read_bytes().startswith(b"\x89PNG")
    assert target.stat().st_size > 20_000
