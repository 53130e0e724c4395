"""Markdown as one HTML page that needs nothing else: pictures within, no script, no address."""

import base64
import mimetypes
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.page.markdown import MISSING

_SHORT = 16  # characters of a row's name that stay on one line, as in "Interflow (S1)"
_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
$lead</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ul>
$contents</ul>
</nav>
<main>
$sections</main>
</body>
</html>
""")


def page(lead: str, sections: dict[str, str], folder: Path) -> str:
    """The page.

    Args:
      lead: Markdown of the page's head, which begins with its title.
      sections: Markdown by anchor; every heading of the first level enters the contents. A link to
        ANCHOR.md goes to the section.
      folder: where pictures lie.
    """
    parts, contents = [], []
    for anchor, markdown in sections.items():
        html, headings = _render(markdown, folder, sections, anchor, deeper=1)
        parts.append(f'<section aria-labelledby="{anchor}">\n{html}</section>\n')
        contents += [f'<li><a href="#{name}">{escape(text)}</a></li>\n' for name, text in headings]
    head, headings = _render(lead, folder, sections)
    return _PAGE.substitute(
        title=escape(headings[0][1]),
        style=Path(__file__).with_name("page.css").read_text(),
        lead=head,
        contents="".join(contents),
        sections="".join(parts),
    )


def _render(
    markdown: str, folder: Path, anchors: Iterable[str], anchor: str = "top", deeper: int = 0
) -> tuple[str, list[tuple[str, str]]]:
    """The HTML, and anchor and text of every heading of the first level."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    parser.add_render_rule("image", _image)
    tokens = parser.parse(markdown)
    headings, label = [], ""
    for place, token in enumerate(tokens):
        content = tokens[place + 1].content if place + 1 < len(tokens) else ""
        if token.type == "heading_open":
            label = _text(tokens[place + 1])
            if token.tag == "h1":
                name = anchor if not headings else f"{anchor}-{len(headings) + 1}"
                token.attrSet("id", name)
                headings.append((name, label))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + deeper)}"
        elif token.type == "table_open":
            token.meta["label"] = label
        elif token.type in ("th_open", "td_open"):
            _mark_cell(tokens, place, content)
        elif token.type == "paragraph_open":
            children = tokens[place + 1].children or []
            if [child.type for child in children] == ["image"]:
                children[0].meta["figure"] = True
                token.hidden = tokens[place + 2].hidden = True  # a figure stands for itself
        for child in token.children or ():
            if child.type == "image":
                child.meta["data"] = _data(folder, str(child.attrGet("src")))
            elif child.type == "link_open":
                target = Path(str(child.attrGet("href")))
                if target == Path(f"{target.stem}.md") and target.stem in anchors:
                    child.attrSet("href", f"#{target.stem}")
    return parser.renderer.render(tokens, parser.options, {}), headings


def _mark_cell(tokens: Sequence[Token], place: int, content: str) -> None:
    """Says what a cell is: a column's head, a row's head (its first cell), or missing."""
    token, closing = tokens[place], tokens[place + 2]
    align = str(token.attrGet("style") or "").rpartition(":")[2]
    token.attrs = {"class": align} if align in ("right", "center") else {}
    if token.type == "th_open":
        if content:
            token.attrSet("scope", "col")
        else:
            token.tag = closing.tag = "td"  # the corner names nothing
    elif tokens[place - 1].type == "tr_open":
        token.tag = closing.tag = "th"
        token.attrSet("scope", "row")
        if len(content) <= _SHORT:
            token.attrJoin("class", "short")
    if content == MISSING:
        token.attrJoin("class", "missing")


def _text(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def _table_open(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    # A box that scrolls is to be reached with the keyboard, and so needs a name.
    label = escape(tokens[place].meta["label"] or "table")
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n<table>\n'


def _table_close(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    return "</table>\n</div>\n"


def _data(folder: Path, source: str) -> str | None:
    """The address that holds a picture's data, if the source is a picture in the folder."""
    address = urlsplit(source)
    file = folder / unquote(address.path)
    kind = mimetypes.guess_type(file.name)[0] or ""
    if address.scheme or address.netloc or not kind.startswith("image/") or not file.is_file():
        return None
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _image(self, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    token = tokens[place]
    shows = escape(_text(token))
    if token.meta["data"] is None:
        source = escape(str(token.attrGet("src")))
        image = f'<span class="missing">missing picture: {shows} ({source})</span>'
    else:
        image = f'<img src="{token.meta["data"]}" alt="{shows}">'
    if not token.meta.get("figure"):
        return image
    caption = f"<figcaption>{shows}</figcaption>"
    return f'<figure>\n<div class="scroll">{image}</div>\n{caption}\n</figure>\n'
