"""Draws a network with branches and weights: python docs/drawing.py > docs/static/network.svg

One file for dark and light pages: its colours follow the reader's.
"""

STAGES = ("1 to 7", "8, 9", "10, 11", "12, 13")  # convolutions
WEIGHTS = (0.3, 0.9, 0.6, 0.4)  # of a drawing, not of a run
STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #1f2328; text-anchor: middle; }
  .small { font-size: 12px; fill: #59636e; }
  .stage { fill: #d8e6f8; stroke: #3566a8; }
  .branch { fill: #fbe7c6; stroke: #a86b12; }
  .sum { fill: #d9f0dc; stroke: #2c7a3b; }
  .arrow { stroke: #59636e; stroke-width: 1.6; fill: none; marker-end: url(#tip); }
  .weight { stroke: #a86b12; fill: none; }
  .tip { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .small { fill: #9198a1; }
    .stage { fill: #1d3250; stroke: #79a7e3; }
    .branch { fill: #46330f; stroke: #dca544; }
    .sum { fill: #17371e; stroke: #63c174; }
    .arrow { stroke: #9198a1; }
    .weight { stroke: #dca544; }
    .tip { fill: #9198a1; }
  }
"""
WIDTH, HEIGHT = 760, 330
FIRST, STEP = 185, 160  # pixels: the first stage's middle, and from one to the next


def box(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle of a kind, by its middle."""
    corner = f'x="{x - width / 2:g}" y="{y - height / 2:g}"'
    return f'<rect class="{kind}" {corner} width="{width:g}" height="{height:g}" rx="6"/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Words around a middle."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def arrow(path: str, width: float | None = None) -> str:
    """A line with a tip; one with a width is a weight."""
    weight = f'<path class="weight" stroke-width="{width:g}" d="{path}"/>' if width else ""
    return weight or f'<path class="arrow" d="{path}"/>'


def drawing() -> str:
    """The SVG."""
    shapes = [text(60, 76, "image"), arrow("M 90 70 H 132")]
    top, branch, fusion = 70, 175, 285
    middle = FIRST + STEP * (len(STAGES) - 1) / 2
    for number, (layers, weight) in enumerate(zip(STAGES, WEIGHTS, strict=True)):
        x = FIRST + STEP * number
        shapes += [
            box("stage", x, top, 100, 92 - 16 * number),
            text(x, top + 5, f"conv {layers}"),
            arrow(f"M {x} {top + 46 - 8 * number} V {branch - 27}"),
            box("branch", x, branch, 104, 46),
            text(x, branch - 2, "pool, linear"),
            text(x, branch + 14, "a prediction", "small"),
            arrow(f"M {x} {branch + 23} L {middle + (x - middle) / 4:g} {fusion - 24}", 9 * weight),
            text(
                x + (middle - x) * 0.42 + (18 + abs(x - middle) / 12) * (1 if x < middle else -1),
                branch + 58,
                f"w<tspan dy='4' font-size='10'>{number + 1}</tspan>",
            ),
        ]
        if number + 1 < len(STAGES):
            shapes.append(arrow(f"M {x + 50} {top} H {x + STEP - 53}"))
    shapes += [
        box("sum", middle, fusion, 190, 46),
        text(middle, fusion + 5, "weighted sum, softmax"),
        arrow(f"M {middle + 95} {fusion} H {middle + 165}"),
        text(middle + 205, fusion + 5, "answer"),
    ]
    tip = '<path class="tip" d="M 0 0 L 8 4 L 0 8 z"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join(
        [
            head,
            "<title>A network whose every depth predicts; a fusion weighs the predictions</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto">{tip}</marker></defs>',
            *shapes,
            "</svg>",
        ]
    )


if __name__ == "__main__":
    print(drawing())
