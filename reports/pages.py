"""Built HTML pages as a browser sees them: their links, and what they would load."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

_LOADING = ("src", "srcset", "poster", "data", "action", "formaction", "background")
# Only these relations of <link> load nothing.
_NAMING = {"canonical", "next", "prev", "index", "search", "author", "license", "help", "up"}
_REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
_CSS_ADDRESS = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.remote, self._style = set(), [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.ids.update(attrs[name] for name in ("id", "name") if name in attrs)
        self._style = tag == "style"
        self.remote += _CSS_ADDRESS.findall(attrs.get("style", ""))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        loaded = [attrs[name] for name in _LOADING if name in attrs]
        if tag != "a" and not (tag == "link" and attrs.get("rel") in _NAMING):
            loaded += [attrs[name] for name in ("href", "xlink:href") if name in attrs]
        self.remote += [address[:120] for value in loaded for address in value.split(", ")
                        if _REMOTE.match(address)]

    def handle_data(self, data):
        if self._style:
            self.remote += _CSS_ADDRESS.findall(data)


def problems(html):
    """Sentences on what is wrong in a folder of pages: links to a file or anchor that is not there, and what
    a page or style sheet would fetch from a network (plain links are free)."""
    pages = {path: _Page(path) for path in sorted(html.rglob("*.html"))
             if "_static" not in path.relative_to(html).parts}
    return _dead_links(html, pages) + _remote_resources(html, pages)


def _remote_resources(html, pages):
    loads = [(path, address) for path, page in pages.items() for address in page.remote]
    for path in sorted(html.rglob("*.css")):
        loads += [(path, address) for address in _CSS_ADDRESS.findall(path.read_text(encoding="utf-8"))]
    return [f"{path.relative_to(html)} loads {address}" for path, address in loads]


def _dead_links(html, pages):
    found = []
    for path, page in pages.items():
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            known = pages[target].ids if target in pages else {fragment}
            if not target.exists() or (fragment and fragment not in known):
                found.append(f"{path.relative_to(html)} links to {link}, which does not exist")
    return found
