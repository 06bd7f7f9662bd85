"""The report in a real browser: headless Chromium opens pages from their folder, with the network off."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import pytest

PHONE, DESKTOP = 375, 1280
NOTEBOOK = "notebooks/05_external_evaluation.html"
QUICK = ("index.html", NOTEBOOK, "notebooks/01_data_audit.html")
LOCAL = {"file", "data", "blob", "about"}

# What a page holds once it is loaded, also pictures that wait to be scrolled to. Those written into the page
# get a short name afterwards: axe-core copies what it looks at, and would need minutes for megabytes.
CONTENT = """
const done = arguments[0], images = [...document.images];
images.forEach(image => image.loading = 'eager');
const loaded = image => image.complete || new Promise(go => { image.onload = image.onerror = go; });
const shorten = image => image.src.startsWith('data:') && fetch(image.src).then(answer => answer.blob())
  .then(blob => { image.src = URL.createObjectURL(blob); return image.decode().catch(() => null); });
const content = () => ({
  ids: [...document.querySelectorAll('[id], a[name]')].map(node => node.id || node.name),
  links: [...document.querySelectorAll('a[href]')].map(node => node.href),
  images: images.map(image => {
    const box = image.getBoundingClientRect(), shown = image.checkVisibility();
    const empty = !image.naturalWidth || (shown && !(box.width && box.height));
    return {name: image.alt || image.src.slice(0, 80), empty};
  }),
});
Promise.all(images.map(loaded)).then(() => {
  const found = content();
  Promise.all(images.map(shorten)).then(() => done(found));
});
"""
# The document may not be wider than the window; what is, and does not lie in a box that scrolls, is named.
WIDE = """
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= width) return [];
const outside = [...document.body.querySelectorAll('*')].filter(
  node => node.getBoundingClientRect().right > width + 1);
return outside.slice(0, 3).map(node => `${node.tagName}.${node.className} at ${width}`);
"""
# Axe-core looks at the first rows of each table and at two pieces of code, unfolded and at rest: the others
# are made alike, and there are thousands. A wide table's shadow would hide the colour behind its text.
SAMPLE = """
document.querySelectorAll('tbody tr:nth-child(n+4)').forEach(node => node.remove());
[...document.querySelectorAll('details')].forEach((fold, place) => place < 2
  ? fold.open = true : fold.querySelectorAll('pre').forEach(node => node.remove()));
document.head.appendChild(document.createElement('style')).textContent =
  '*, *::before, *::after { background-image: none !important; animation: none !important;'
  + ' transition: none !important }';
"""
AXE = """
axe.run({resultTypes: ['violations'], ...arguments[0]}).then(result => arguments[1](
  result.violations.filter(fault => ['serious', 'critical'].includes(fault.impact))
    .map(fault => `${fault.id}: ${fault.nodes[0].html.slice(0, 160)} ${fault.nodes[0].failureSummary}`)),
  error => arguments[1]([String(error)]));
"""
CONTRAST, OTHERS = {"runOnly": ["color-contrast"]}, {"rules": {"color-contrast": {"enabled": False}}}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that knows no host; every page it opens has axe-core."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra `dev`)")
    axe = pytest.importorskip("axe_core_python.base", reason="axe-core-python is not installed (extra `dev`)")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
                     "host-resolver-rules=MAP * ~NOTFOUND", *["no-sandbox"] * (os.geteuid() == 0)):
        options.add_argument(f"--{argument}")  # as root Chromium starts only without its sandbox
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(120)
    chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": axe.AXE_SCRIPT})
    yield chrome
    chrome.quit()


def resize(browser, width, scheme="light"):
    """Set the width of the window, which Chromium itself keeps above 500 px, and the system's mode."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def inspect(browser, path):
    """The faults of a page by check, its ids and its links."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    resize(browser, DESKTOP)
    browser.get(path.as_uri())
    content = browser.execute_async_script(CONTENT)
    found = {"images": [image["name"] for image in content["images"] if image["empty"]],
             "requests": requests(browser), "width": browser.execute_script(WIDE)}
    resize(browser, PHONE)
    found["width"] += browser.execute_script(WIDE)
    browser.execute_script(SAMPLE)
    found["accessibility"] = browser.execute_async_script(AXE, OTHERS)
    for scheme in ("light", "dark"):
        resize(browser, DESKTOP, scheme)
        found["accessibility"] += browser.execute_async_script(AXE, CONTRAST)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    found["console"] = [entry["message"] for entry in severe]
    return found, set(content["ids"]), set(content["links"])


def requests(browser):
    """What a page asked a network for since the log was last read."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"][:200] for event in events
             if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if urlsplit(url).scheme not in LOCAL]


def faults(browser, html, names=None):
    """The faults of some pages of a folder, or of all: page -> check -> what."""
    paths = [html / name for name in names] if names else [
        path for path in html.rglob("*.html") if "_static" not in path.relative_to(html).parts]
    pages = {path: inspect(browser, path) for path in paths}
    for found, _, links in pages.values():
        found["links"] = [link for link in links if is_broken(link, pages)]
    return {path.name: {check: what for check, what in found.items() if what}
            for path, (found, _, _) in pages.items()}


def is_broken(link, pages):
    """Whether a link leads to a file (page or download) or anchor that is not there; the web is not asked."""
    parts = urlsplit(link)
    if parts.scheme != "file":
        return parts.scheme not in ("http", "https", "mailto")
    target, anchor = Path(url2pathname(parts.path)), unquote(parts.fragment)
    return not target.is_file() or bool(anchor) and target in pages and anchor not in pages[target][1]


@pytest.mark.parametrize("run, names", [
    ("smoke_run", QUICK), pytest.param("demo_run", (), marks=pytest.mark.slow)])
def test_no_page_has_a_fault(browser, request, run, names):
    found = faults(browser, request.getfixturevalue(run) / "html", names)
    assert not {name: what for name, what in found.items() if what} and len(found) >= len(QUICK)


CLEAN = ('<!doctype html><html lang="en"><head><title>A page</title><link rel="icon" href="data:,">'
         '<meta name="viewport" content="width=device-width"></head>'
         '<body><main><h1 id="here">A page</h1><a href="#here">to the top</a>{}</main></body></html>')
DARK = "<style>@media (prefers-color-scheme: dark) { p { color: #bbb } }</style><p>pale</p>"
DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
PLANTED = {
    "clean.html": ("<p>Nothing is wrong.</p>", set()),
    "remote.html": ('<img src="https://no.example/a.png" alt="a">', {"requests", "console", "images"}),
    "exception.html": ("<script>nothing.at.all</script>", {"console"}),
    "anchor.html": ('<a href="#there">there</a>', {"links"}),
    "download.html": ('<a href="t.csv" download>there</a>', {"links"}),
    "wide.html": ('<div style="width: 1000px">wide</div>', {"width"}),
    "silent.html": (f'<img src="{DOT}">', {"accessibility"}),
    "dark.html": (DARK, {"accessibility"}),
}


def test_planted_faults_are_found(browser, tmp_path):
    for name, (markup, _) in PLANTED.items():
        (tmp_path / name).write_text(CLEAN.format(markup), encoding="utf-8")
    found = {name: set(what) for name, what in faults(browser, tmp_path).items()}
    assert found == {name: checks for name, (_, checks) in PLANTED.items()}


# What a reader does


@pytest.fixture
def page(browser, smoke_run):
    """A function that opens a page of the report, as a first visit."""
    def open_page(name, width=DESKTOP):
        resize(browser, width)
        browser.get((smoke_run / "html" / name).as_uri())
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        browser.refresh()

    return open_page


@pytest.fixture
def press(browser):
    """A function that presses keys, named as selenium names them, where the focus is."""
    from selenium.webdriver import ActionChains, Keys

    def pressed(*keys):
        ActionChains(browser).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    return pressed


def wait(browser, script):
    """Wait until a script returns something true, and return that."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {script}"))


# Whether the focused element is in the window and drawn differently from how it is without the focus.
FOCUS = """
const node = document.activeElement, box = node.getBoundingClientRect(), look = () => {
  const style = getComputedStyle(node);
  return [style.outline, style.boxShadow, style.backgroundColor, style.borderColor].join();
};
const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0, focused = look();
node.blur();
const plain = look();
node.focus();
return inside && focused !== plain ? '' : node.outerHTML.slice(0, 120);
"""


@pytest.mark.slow
def test_the_keyboard_is_enough(browser, page, press):
    page(NOTEBOOK)
    press("TAB", "ENTER", "TAB")  # the first stop skips to the content
    assert browser.execute_script("return document.querySelector('main').contains(document.activeElement)")
    for _ in range(30):
        press("TAB")
        assert browser.execute_script(FOCUS) == ""
    folds = "[...document.querySelectorAll('details.hide')]"
    assert browser.execute_script(f"return {folds}.length > 5 && {folds}.every(fold => !fold.open)")
    browser.execute_script(f"{folds}[0].querySelector('summary').focus()")
    press("ENTER")
    assert browser.execute_script(f"return {folds}[0].querySelector('pre').checkVisibility()")


@pytest.mark.slow
def test_search_works_from_a_folder(browser, page, press, smoke_run):
    page("index.html")
    buttons = "[...document.querySelectorAll('.search-button__button')]"
    wait(browser, f"{buttons}.find(node => node.checkVisibility())").click()
    wait(browser, "document.activeElement.name === 'q'")
    press("kappa", "ENTER")
    result = "[...document.querySelectorAll('#search-results li a')].map(node => node.href)"
    assert wait(browser, f"{result}.some(link => link.includes('{NOTEBOOK}'))")


@pytest.mark.slow
def test_the_sections_of_a_page_are_at_hand_on_a_phone(browser, page):
    page(NOTEBOOK, width=PHONE)
    links = "[...document.querySelectorAll('.koa-contents .nav-link')]"
    heading = "[...document.querySelectorAll('article h2')]"
    assert browser.execute_script(f"return {links}.length == {heading}.length")
    wait(browser, "document.querySelector('.koa-contents button')").click()
    wait(browser, f"{links}[3].checkVisibility() && {links}[3]").click()
    # Below the bar that stays at the top, not behind it.
    assert wait(browser, f"(top => top > 20 && top < 300)({heading}[3].getBoundingClientRect().top)")


@pytest.mark.slow
def test_print_shows_the_banner_and_no_code_in_dark_ink(browser, page):
    page(NOTEBOOK)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    state = browser.execute_script("""
        const all = selector => [...document.querySelectorAll(selector)];
        const shown = selector => all(selector).some(node => node.checkVisibility());
        const ink = selector => getComputedStyle(all(selector)[0]).color.match(/\\d+/g).slice(0, 3);
        return {
          shown: ['.bd-header-announcement', 'article h1', 'details.hide', '.bd-sidebar-primary'].map(shown),
          ink: Math.max(...['article p', 'article h1', 'article td', 'figcaption'].flatMap(ink).map(Number)),
        };""")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert state["shown"] == [True, True, False, False] and state["ink"] < 110
