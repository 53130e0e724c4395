"""Markdown as one self-contained HTML page: pictures embedded, no scripts, no external files."""

import base64
import mimetypes
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from experiments.page.markdown import MISSING

SHORT = 16  # characters of a row's name that stay on one line, as in "Interflow (S1)"
FOLDER = Path(__file__).parent


def page(lead: str, sections: dict[str, str], folder: Path) -> str:
    """Renders a lead and sections in Markdown as a page, with the folder's pictures.

    The lead begins with the page's title. Every section's first-level headings are listed in the
    contents; a link to ANCHOR.md goes to that section.
    """
    parts, contents = [], []
    for anchor, markdown in sections.items():
        html, headings = _render(markdown, folder, sections, anchor, deeper=1)
        parts.append(f'<section aria-labelledby="{anchor}">\n{html}</section>\n')
        contents += [f'<li><a href="#{name}">{escape(text)}</a></li>\n' for name, text in headings]
    head, headings = _render(lead, folder, sections)
    return Template((FOLDER / "page.html").read_text()).substitute(
        title=escape(headings[0][1]),
        style=(FOLDER / "page.css").read_text(),
        lead=head,
        contents="".join(contents),
        sections="".join(parts),
    )


def _render(
    markdown: str, folder: Path, anchors: Iterable[str], anchor: str = "top", deeper: int = 0
) -> tuple[str, list[tuple[str, str]]]:
    """The HTML, and the anchor and text of every first-level heading."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    headings, label = [], "table"
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            label = _text(tokens[place + 1])
            if token.tag == "h1":
                name = anchor if not headings else f"{anchor}-{len(headings) + 1}"
                token.attrSet("id", name)
                headings.append((name, label))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + deeper)}"
        elif token.type == "table_open":
            # A scrolling box must be reachable by keyboard, and so needs a name.
            box = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
            _replace(token, f"{box}\n<table>\n")
        elif token.type == "table_close":
            _replace(token, "</table>\n</div>\n")
        elif token.type in ("th_open", "td_open"):
            _mark_cell(*tokens[place - 1 : place + 3])
        elif token.type == "inline":
            before, children = tokens[place - 1], token.children or []
            alone = before.type == "paragraph_open" and [c.type for c in children] == ["image"]
            if alone:  # a figure is a block of its own
                before.hidden = tokens[place + 1].hidden = True
            for child in children:
                if child.type == "image":
                    _replace(child, _image(child, folder, figure=alone))
                elif child.type == "link_open":
                    target = Path(str(child.attrGet("href")))
                    if target == Path(f"{target.stem}.md") and target.stem in anchors:
                        child.attrSet("href", f"#{target.stem}")
    return parser.renderer.render(tokens, parser.options, {}), headings


def _replace(token: Token, html: str) -> None:
    token.type, token.content, token.children = "html_block", html, None


def _mark_cell(before: Token, token: Token, inline: Token, closing: Token) -> None:
    """Marks what a cell is: a column header, a row header (the first cell), or missing."""
    align = str(token.attrGet("style") or "").rpartition(":")[2]
    token.attrs = {"class": align} if align in ("right", "center") else {}
    if token.type == "th_open":
        if inline.content:
            token.attrSet("scope", "col")
        else:
            token.tag = closing.tag = "td"  # the corner is not a header
    elif before.type == "tr_open":
        token.tag = closing.tag = "th"
        token.attrSet("scope", "row")
        if len(inline.content) <= SHORT:
            token.attrJoin("class", "short")
    if inline.content == MISSING:
        token.attrJoin("class", "missing")


def _text(token: Token) -> str:
    return "".join(child.content for child in token.children or ())


def _image(token: Token, folder: Path, figure: bool) -> str:
    """A picture from the folder, embedded; anything else is marked as missing."""
    shows, source = escape(_text(token)), str(token.attrGet("src"))
    address = urlsplit(source)
    file = folder / unquote(address.path)
    kind = mimetypes.guess_type(file.name)[0] or ""
    if address.scheme or address.netloc or not kind.startswith("image/") or not file.is_file():
        image = f'<span class="missing">missing picture: {shows} ({escape(source)})</span>'
    else:
        content = base64.b64encode(file.read_bytes()).decode()
        image = f'<img src="data:{kind};base64,{content}" alt="{shows}">'
    if not figure:
        return image
    caption = f"<figcaption>{shows}</figcaption>"
    return f'<figure>\n<div class="scroll">{image}</div>\n{caption}\n</figure>\n'
