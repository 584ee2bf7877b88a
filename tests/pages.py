"""Reads a page that was written, as a browser would: tags, visible text, links."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path


class HtmlPage(HTMLParser):
    """Start tags with their attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.quiet = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.quiet = False

    def handle_data(self, data: str) -> None:
        if not self.quiet:
            self.words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str]]:
        return (attributes for name, attributes in self.tags if name == tag)

    @property
    def local(self) -> set[str]:
        """Files that the page shows or links to, without an address of the web."""
        links = {
            attributes[name].partition("#")[0]
            for _, attributes in self.tags
            for name in ("src", "href")
            if name in attributes
        }
        return {link for link in links if link and not re.match(r"[a-z]+:", link)}
