"""The report in a real browser: headless Chromium opens pages from their folder, with the network off."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import pytest

PHONE, DESKTOP = 375, 1280
CHECKS = ["requests", "console", "images", "descriptions", "width", "accessibility"]
LOCAL = {"file", "data", "blob", "about"}

# What a page holds once it is loaded. Pictures that wait to be scrolled to are asked for now. Those written into the page get a short
# name afterwards: axe-core copies the markup of what it looks at, and would need minutes for their megabytes.
CONTENT = """
const done = arguments[0], images = [...document.images];
images.forEach(image => image.loading = 'eager');
const loaded = image => image.complete || new Promise(go => { image.onload = image.onerror = go; });
const shorten = image => image.src.startsWith('data:') && fetch(image.src).then(answer => answer.blob()).then(blob => {
  image.src = URL.createObjectURL(blob);
  return image.decode().catch(() => null);
});
const content = () => ({
  ids: [...document.querySelectorAll('[id], a[name]')].map(node => node.id || node.name),
  links: [...document.querySelectorAll('a[href]')].map(node => node.href),
  images: images.map(image => {
    const box = image.getBoundingClientRect(), shown = image.checkVisibility();
    const empty = !image.naturalWidth || (shown && !(box.width && box.height));
    return {name: image.alt || image.src.slice(0, 80), empty, named: Boolean(image.alt.trim()), silent: image.role === 'presentation'};
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
const outside = [...document.body.querySelectorAll('*')].filter(node => node.getBoundingClientRect().right > width + 1);
return [`${document.documentElement.scrollWidth} px at a width of ${width}`].concat(
  outside.slice(0, 3).map(node => `${node.tagName.toLowerCase()}.${node.className}`));
"""
# Axe-core looks at the first rows of each table and, unfolded, at the first two pieces of code: the others are made alike, and there are thousands.
SAMPLE = """
document.querySelectorAll('tbody tr:nth-child(n+4)').forEach(node => node.remove());
[...document.querySelectorAll('details')].forEach((fold, place) => place < 2 ? fold.open = true : fold.querySelectorAll('pre').forEach(node => node.remove()));
// The shadow at the edge of a wide table would keep axe-core from telling the colour behind its text.
document.head.appendChild(document.createElement('style')).textContent = '* { background-image: none !important }';
"""
AXE = """
axe.run({resultTypes: ['violations'], ...arguments[0]}).then(result => arguments[1](
  result.violations.filter(fault => ['serious', 'critical'].includes(fault.impact))
    .map(fault => `${fault.id}: ${fault.nodes.length} times, first ${fault.nodes[0].html.slice(0, 160)} ${fault.nodes[0].failureSummary}`)),
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
        pytest.skip("chromium and chromedriver are not both installed (Debian packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to start as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_script_timeout(120)
    chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": axe.AXE_SCRIPT})
    yield chrome
    chrome.quit()


def show(browser, path, width=DESKTOP, scheme="light"):
    """Open a page at a width, in a system's light or dark mode."""
    resize(browser, width, scheme)
    browser.get(path if isinstance(path, str) else path.as_uri())


def resize(browser, width, scheme="light"):
    """Set the width of the window, which headless Chromium itself keeps above 500 px, and the system's mode."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


# A code cell that opens fades in: measured half way, its colours have too little contrast.
STILL = """const style = document.createElement('style');
style.textContent = '*, *::before, *::after { animation: none !important; transition: none !important; }';
document.head.append(style);"""


def inspect(browser, path):
    """Open a page and list its faults by check; also its ids and links."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    show(browser, path)
    content = browser.execute_async_script(CONTENT)
    images = content["images"]
    found = {
        "images": [f"{image['name']} is not loaded or has no size" for image in images if image["empty"]],
        "descriptions": [f"{image['name']} has no alternative text" for image in images if not (image["named"] or image["silent"])],
        "width": browser.execute_script(WIDE),
        "requests": requests_of(browser),
    }
    browser.execute_script(STILL)
    resize(browser, PHONE)
    found["width"] += browser.execute_script(WIDE)
    browser.execute_script(SAMPLE)
    found["accessibility"] = ["phone: " + fault for fault in browser.execute_async_script(AXE, OTHERS)]
    resize(browser, DESKTOP)
    found["accessibility"] += browser.execute_async_script(AXE, OTHERS) + browser.execute_async_script(AXE, CONTRAST)
    resize(browser, DESKTOP, "dark")
    found["accessibility"] += ["dark: " + fault for fault in browser.execute_async_script(AXE, CONTRAST)]
    found["console"] = [entry["message"][:300] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return {**found, "ids": set(content["ids"]), "links": content["links"]}


def requests_of(browser):
    """What a page asked a network for, or asked for in vain, since the log was last read."""
    found, address = [], {}
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        values = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            url = address[values["requestId"]] = values["request"]["url"]
            if urlsplit(url[:200]).scheme not in LOCAL:
                found.append(f"{url[:200]} is remote")
        elif event["method"] == "Network.loadingFailed" and not values.get("canceled"):
            found.append(f"{address.get(values['requestId'], 'a request')[:200]} failed: {values['errorText']}")
    return found


QUICK = ("index.html", "notebooks/05_external_evaluation.html", "notebooks/01_data_audit.html")


def walk(browser, html, names=None):
    """The faults of some pages below a folder, or of all; links to anchors are followed on these pages only (the build follows all)."""
    paths = [html / name for name in names] if names else [path for path in sorted(html.rglob("*.html")) if "_static" not in path.relative_to(html).parts]
    pages = {path: inspect(browser, path) for path in paths}
    for page in pages.values():
        page["links"] = [link for link in sorted(set(page["links"])) if is_broken(link, pages)]
    return {path.relative_to(html).as_posix(): page for path, page in pages.items()}


def is_broken(link, pages):
    """Whether a link leads to a file or an anchor that is not there; links to the web are not followed."""
    parts = urlsplit(link)
    if parts.scheme != "file":
        return parts.scheme not in ("http", "https", "mailto")
    target, anchor = Path(url2pathname(parts.path)), unquote(parts.fragment)
    return not target.is_file() or bool(anchor and target in pages and anchor not in pages[target]["ids"])


@pytest.fixture(scope="module")
def html(smoke_run):
    """The HTML folder of a report."""
    return smoke_run / "html"


@pytest.fixture
def page(browser, html):
    """A function that opens a page of the report, as a first visit."""

    def open_page(name, **more):
        show(browser, html / name, **more)
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        show(browser, html / name, **more)

    return open_page


def press(browser, *keys):
    """Press keys where the focus is."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait(browser, script, *arguments):
    """Wait until a script returns something true, and return that."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {script}", *arguments))


def test_the_pages_that_a_reviewer_opens_first_have_no_fault(browser, html):
    assert faults(walk(browser, html, QUICK)) == []


@pytest.mark.slow
@pytest.mark.parametrize("run", ["smoke_run", "demo_run"])
def test_no_page_has_a_fault(browser, request, run):
    pages = walk(browser, request.getfixturevalue(run) / "html")
    assert len(pages) > 20 and faults(pages) == []


def faults(pages):
    return [f"{name}, {check}: {fault}" for name, found in pages.items() for check in [*CHECKS, "links"] for fault in found[check]]


CLEAN = ('<!doctype html><html lang="en"><head><title>A page</title><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"></head>'
         '<body><main><h1 id="here">A page</h1><a href="#here">to the top</a>{}</main></body></html>')
DOT = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABc3UBGAAAAABJRU5ErkJggg=="
PLANTED = {
    "nothing": ("<p>Nothing is wrong.</p>", []),
    "a remote image": ('<img src="https://pictures.example/a.png" alt="a knee">', ["requests", "console", "images"]),
    "an exception": ("<script>nothing.at.all</script>", ["console"]),
    "a broken anchor": ('<a href="#there">there</a>', ["links"]),
    "a wide element": ('<div style="width: 1000px">wide</div>', ["width"]),
    "no alternative text": (f'<img src="{DOT}">', ["descriptions", "accessibility"]),
    "pale text in the dark": ("<style>@media (prefers-color-scheme: dark) { p { color: #bbb } }</style><p>pale</p>", ["accessibility"]),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(browser, tmp_path, fault):
    markup, expected = PLANTED[fault]
    (tmp_path / "page.html").write_text(CLEAN.format(markup), encoding="utf-8")
    found = walk(browser, tmp_path)["page.html"]
    assert [check for check in [*CHECKS, "links"] if found[check]] == [check for check in [*CHECKS, "links"] if check in expected], found


NOTEBOOK = "notebooks/05_external_evaluation.html"
# Whether the focused element is in the window and drawn differently from how it is without the focus.
FOCUS = """
const node = document.activeElement, box = node.getBoundingClientRect(), look = () => {
  const style = getComputedStyle(node);
  return [style.outlineStyle, style.outlineWidth, style.boxShadow, style.backgroundColor, style.borderColor].join();
};
const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0, focused = look();
node.blur();
const plain = look();
node.focus();
return {tag: node.tagName, name: node.outerHTML.slice(0, 120), seen: inside && focused !== plain};
"""


def tab_stops(browser, count):
    """What the tab key reaches first on the page that is open."""
    from selenium.webdriver.common.keys import Keys

    stops = []
    for _ in range(count):
        press(browser, Keys.TAB)
        stops.append(browser.execute_script(FOCUS))
    return stops


@pytest.mark.slow
def test_a_focus_that_is_not_drawn_is_found(browser, tmp_path):
    (tmp_path / "page.html").write_text(CLEAN.format('<style>button { outline: none }</style><button>a</button><a href="#here" style="position: absolute; top: -99px">b</a>'))
    show(browser, tmp_path / "page.html")
    assert [stop["seen"] for stop in tab_stops(browser, 3)] == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.html", NOTEBOOK])
def test_every_stop_of_the_tab_key_is_seen(browser, page, name):
    page(name)
    stops = tab_stops(browser, 45)
    assert not [stop["name"] for stop in stops if not stop["seen"]]
    assert {"A", "BUTTON"} <= {stop["tag"] for stop in stops}


@pytest.mark.slow
def test_the_first_stop_skips_to_the_content(browser, page):
    from selenium.webdriver.common.keys import Keys

    page(NOTEBOOK)
    press(browser, Keys.TAB)
    assert browser.execute_script("return document.activeElement.textContent") == "Skip to main content"
    press(browser, Keys.ENTER, Keys.TAB)
    assert browser.execute_script("return document.querySelector('main').contains(document.activeElement)")


@pytest.mark.slow
def test_code_unfolds_by_keyboard_and_is_folded_at_first(browser, page):
    from selenium.webdriver.common.keys import Keys

    page(NOTEBOOK)
    folds = "[...document.querySelectorAll('details.hide')]"
    assert browser.execute_script(f"return {folds}.length > 5 && {folds}.every(fold => !fold.open)")
    browser.execute_script(f"{folds}[0].querySelector('summary').focus()")
    press(browser, Keys.ENTER)
    assert browser.execute_script(f"return {folds}[0].open && {folds}[0].querySelector('pre').checkVisibility()")
    press(browser, Keys.SPACE)
    assert browser.execute_script(f"return !{folds}[0].open")


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_search_works_from_a_folder(browser, page, html, width):
    from selenium.webdriver.common.keys import Keys

    page("index.html", width=width)
    browser.get_log("browser")
    button = wait(browser, "[...document.querySelectorAll('.search-button__button')].find(node => node.checkVisibility() && node.getBoundingClientRect().width)")
    button.click()
    wait(browser, "document.activeElement.name === 'q'")
    press(browser, "kappa", Keys.ENTER)
    # Results come one after the other; the summary tells how many there will be.
    links = wait(browser, """(links => links.length && links.length == document.querySelector('.search-summary')?.textContent.match(/\\d+/)?.[0] && links)(
        [...document.querySelectorAll('#search-results li a')].map(node => node.href))""")
    found = {Path(url2pathname(urlsplit(link).path)) for link in links}
    assert html / NOTEBOOK in found and all(path.is_file() for path in found)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_light_dark_and_the_systems_mode_can_be_chosen_and_are_kept(browser, page, width):
    page("index.html", width=width, scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert browser.execute_script(f"return {theme}") == "dark"
    for mode, shown in (("light", "light"), ("dark", "dark"), ("auto", "dark")):
        wait(browser, "document.querySelector('.theme-switch-button')").click()
        wait(browser, f"document.querySelector('.theme-change-button[data-mode={mode}]')").click()
        assert browser.execute_script(f"return {theme}") == shown
        browser.refresh()
        assert browser.execute_script(f"return {theme}") == shown
    resize(browser, width, "light")
    assert wait(browser, f"{theme} === 'light'")


@pytest.mark.slow
def test_a_phone_opens_and_closes_the_navigation(browser, page):
    from selenium.webdriver.common.keys import Keys

    page("index.html", width=PHONE)
    seen = f"(link => link.checkVisibility({{visibilityProperty: true}}) && link.getBoundingClientRect().right > 0 && link)(document.querySelector('.bd-docs-nav a[href=\"{NOTEBOOK}\"]'))"
    assert not browser.execute_script(f"return {seen}")
    menu = wait(browser, "[...document.querySelectorAll('.primary-toggle')].find(node => node.getBoundingClientRect().width)")
    menu.click()
    assert wait(browser, seen)
    press(browser, Keys.ESCAPE)
    assert wait(browser, f"!{seen}")
    menu.click()
    wait(browser, seen).click()
    assert wait(browser, f"location.pathname.endsWith('{NOTEBOOK}')")


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_sections_of_a_page_are_at_hand(browser, page, width):
    page(NOTEBOOK, width=width)
    entries = "[...document.querySelectorAll('.koa-contents .nav-link')]"
    assert browser.execute_script(f"return {entries}.length") == browser.execute_script("return document.querySelectorAll('article h2').length")
    wait(browser, "document.querySelector('.koa-contents button')").click()
    wait(browser, f"{entries}[3].checkVisibility() && {entries}[3]").click()
    assert wait(browser, f"!{entries}[3].checkVisibility()")
    # Below the bar that stays at the top, not behind it.
    place = wait(browser, "(top => top > 20 && top < 300 && top)(document.querySelectorAll('article h2')[3].getBoundingClientRect().top)")
    assert place


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_shows_the_banner_and_no_code_in_dark_ink(browser, page, scheme):
    page(NOTEBOOK, scheme=scheme)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        state = browser.execute_script("""
            const shown = selector => [...document.querySelectorAll(selector)].some(node => node.checkVisibility());
            const ink = selector => getComputedStyle(document.querySelector(selector)).color.match(/\\d+/g).slice(0, 3).map(Number);
            return {banner: shown('.bd-header-announcement'), code: shown('details.hide'), title: shown('article h1'), twice: shown('#jb-print-docs-body'),
                    navigation: shown('.bd-sidebar-primary'), inks: ['article p', 'article h1', 'article td', 'figcaption'].map(ink),
                    hidden: [...document.querySelectorAll('.koa-scroll')].filter(node => getComputedStyle(node).overflowX !== 'visible').length};""")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert state["banner"] and state["title"]
    assert not (state["code"] or state["twice"] or state["navigation"] or state["hidden"])
    assert max(max(ink) for ink in state["inks"]) < 110


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_start_here", "05_external_evaluation"])
def test_a_solution_is_one_fold_that_says_so(browser, page, name):
    page(f"notebooks/{name}.html")
    folds = browser.execute_script("""return [...document.querySelectorAll('div.cell.tag_solution')].map(cell => [
        [...cell.querySelectorAll('summary')].map(node => node.innerText.trim()),
        [...cell.querySelectorAll('pre, .cell_output')].some(node => node.checkVisibility())]);""")
    assert len(folds) >= 2 and all(summaries[:1] == ["Show solution"] and len(summaries) == 1 and not seen for summaries, seen in folds), folds
