"""Checks a built site: check_links.py FOLDER. Every link leads to a file, and to an id in it; nothing is fetched from elsewhere.

Standard library only. DocC's own pages (swift/) are made by their script in the browser, so only links to them are checked.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a page loads by itself, by element and attribute; what else has an address is a link for the reader.
LOADED = {("script", "src"), ("img", "src"), ("source", "srcset"), ("iframe", "src")}
LOADED_BY_RELATION = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        for name in ("href", "src", "srcset"):
            if name in found:
                loaded = (tag, name) in LOADED or (
                    tag == "link" and LOADED_BY_RELATION & set(found.get("rel", "").split()))
                (self.loads if loaded else self.links).append(found[name])


def check(folder: Path) -> tuple[int, list[str]]:
    """The number of links looked at, and what is wrong with some of them."""

    @cache
    def page(path: Path) -> Page:
        return Page(path.read_text(errors="replace"))

    looked, wrong = 0, []
    for path in sorted(folder.rglob("*.html")):
        name = path.relative_to(folder)
        if name.parts[0] in ("swift", "_static"):
            continue
        for address in page(path).loads:
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
                wrong.append(f"{name}: loads {address}")
        for address in page(path).links + page(path).loads:
            parts = urlsplit(address)
            if parts.scheme or address.startswith("//"):
                continue
            looked += 1
            target = path if not parts.path else (path.parent / unquote(parts.path))
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{name}: {address} leads nowhere")
            elif folder / "swift" in target.resolve().parents and parts.path.endswith(".html"):
                wrong.append(f"{name}: {address}: DocC's script knows a page by its folder alone")
            elif parts.fragment and target.suffix == ".html":
                if unquote(parts.fragment) not in page(target.resolve()).ids:
                    wrong.append(f"{name}: {address}: no such place in {parts.path or 'this page'}")
    return looked, wrong


if __name__ == "__main__":
    count, errors = check(Path(sys.argv[1]).resolve())
    print(*errors, sep="\n", end="\n" if errors else "")
    print(f"{count} links looked at, {len(errors)} wrong")
    sys.exit(1 if errors or not count else 0)
