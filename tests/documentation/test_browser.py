"""The site that `make docs` builds, read with a browser: pages, menu, search, a phone."""

import functools
import http.server
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import threading
from urllib.parse import urldefrag

import pytest

from tests.documentation import chromium, public

ROOT = pathlib.Path(__file__).parent.parent.parent
EXTRA = ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings")

PHONE = {"width": 390, "height": 844, "mobile": True}
DESK = {"width": 1280, "height": 900, "mobile": False}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder and the address of a freshly built site."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: pip install 'tfnorm[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    # Over HTTP and not from files: there browsers refuse the worker that searches.
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(site, tmp_path_factory):
    program = chromium.find()
    if program is None:
        pytest.skip(f"no browser ({', '.join(chromium.NAMES)}) on this machine")
    page = chromium.Page(program, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def links(browser: chromium.Page, where: str) -> list[str]:
    found = browser.evaluate(f"[...document.querySelectorAll('{where}')].map(link => link.href)")
    return sorted({urldefrag(link).url for link in found})


# Too wide is what makes the whole page scroll sideways; tables and code may scroll in themselves.
OF_A_PAGE = """({
    title: document.querySelector('article h1')?.innerText.trim(),
    broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    width: document.documentElement.scrollWidth,
})"""


def test_every_page_is_in_the_menu_and_whole_on_a_phone(site, browser):
    folder, address = site
    browser.resize(**PHONE)
    browser.open(f"{address}index.html")
    pages = links(browser, "nav.md-nav--primary a.md-nav__link")
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
    assert {*pages} == {address + path for path in written if path != "404.html"}
    wrong = []
    for page in pages:
        browser.open(page)
        found = browser.evaluate(OF_A_PAGE)
        elsewhere = [url for url in browser.requests() if not url.startswith((address, "data:"))]
        problems = [
            *browser.problems(),
            *(f"a picture is broken: {picture}" for picture in found["broken"]),
            *(f"something is loaded from elsewhere: {url}" for url in elsewhere),
        ]
        if not found.get("title"):
            problems.append("has no heading")
        if found["width"] > PHONE["width"]:
            problems.append(f"is {found['width']} pixels wide on a phone of {PHONE['width']}")
        wrong += [f"{page.removeprefix(address)}: {problem}" for problem in problems]
    assert not wrong, "\n".join(wrong)


def test_public_names_have_entries(site):
    """A name of the Markdown is not enough: the site may show a file of that name in its place."""
    folder, _ = site
    text = "".join(page.read_text(encoding="utf-8") for page in folder.rglob("*.html"))
    assert not public.missing(set(re.findall(r'id="(tfnorm[\w.]*)"', text)))


def test_search_finds_a_page_and_leads_to_it(site, browser):
    _, address = site
    browser.resize(**DESK)
    browser.open(f"{address}index.html")
    browser.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
    browser.ask("Input.insertText", text="Kalman")
    first = "document.querySelector('a.md-search-result__link')"
    browser.wait_until(f"{first} !== null")
    browser.click(first)
    assert browser.evaluate("location.pathname") == "/normalizers/batch_kalman_normalization.html"
    assert "Kalman" in browser.evaluate(OF_A_PAGE)["title"]
    assert not browser.problems()


def test_a_link_in_the_menu_leads_to_its_page(site, browser):
    _, address = site
    browser.resize(**DESK)
    browser.open(f"{address}index.html")
    menu = "[...document.querySelectorAll('nav.md-nav--primary a.md-nav__link')]"
    browser.click(f"{menu}.find(link => link.href.endsWith('how-to/errors.html'))")
    assert browser.evaluate("location.pathname") == "/how-to/errors.html"
    assert "Errors" in browser.evaluate(OF_A_PAGE)["title"]
    assert not browser.problems()


def test_a_page_that_fails_is_noticed(browser, tmp_path):
    """Without this, the tests above could pass because the browser reports nothing."""
    page = tmp_path / "page.html"
    page.write_text(
        "<meta name='viewport' content='width=device-width'>"
        "<img src='none.png'><div style='width: 500px'>wide</div>"
        "<script>console.error('on the console'); missing()</script>"
    )
    browser.resize(**PHONE)
    browser.open(page.as_uri())
    problems = " | ".join(browser.problems())
    for part in ("on the console", "ReferenceError: missing", "a resource failed"):
        assert part in problems
    found = browser.evaluate(OF_A_PAGE)
    assert found["width"] >= 500 and len(found["broken"]) == 1
    assert not found.get("title")
    assert page.with_name("none.png").as_uri() in browser.requests()
