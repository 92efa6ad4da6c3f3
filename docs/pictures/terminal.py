"""A terminal's output, with its colours, as SVG."""

import re
from xml.sax.saxutils import escape

# Of DejaVu Sans Mono and most other fonts of fixed width: 0.6 of the size.
SIZE, WIDTH, HEIGHT, MARGIN = 14, 8.4, 19, 14
BACKGROUND, FOREGROUND = "#1e1e2e", "#cdd6f4"
STYLES = {
    "1": "font-weight='bold'",
    "2": "fill-opacity='.6'",
    "3": "font-style='italic'",
    "31": "fill='#f38ba8'",
    "32": "fill='#a6e3a1'",
    "33": "fill='#f9e2af'",
}


def svg(text):
    """Of text with the escape sequences of colours."""
    rows = list(styled(text))
    lengths = [sum(len(piece) for piece, _ in row) for row in rows]
    width, height = max(lengths) * WIDTH + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' height='{height:g}'>",
        f"<rect width='100%' height='100%' rx='8' fill='{BACKGROUND}'/>",
        f"<g fill='{FOREGROUND}' font-size='{SIZE}' font-family='DejaVu Sans Mono, Menlo, Consolas, monospace'>",
    ]
    for number, (row, length) in enumerate(zip(rows, lengths)):
        pieces = "".join(f"<tspan {style}>{escape(piece)}</tspan>" if style else escape(piece) for piece, style in row)
        # The length holds the columns in line whatever the font.
        place = f"x='{MARGIN}' y='{MARGIN + number * HEIGHT + SIZE}' textLength='{length * WIDTH:g}'"
        lines.append(f"<text {place} xml:space='preserve'>{pieces}</text>")
    return "\n".join([*lines, "</g>", "</svg>", ""])


def styled(text):
    """The lines, each a list of pieces with their style."""
    styles = []
    for line in text.rstrip("\n").split("\n"):
        row = []
        for sequence, piece in re.findall(r"\x1b\[([0-9;]*)m|([^\x1b]+)", line):
            if piece:
                row.append((piece, " ".join(styles)))
                continue
            for code in sequence.split(";"):
                styles = [*styles, STYLES[code]] if code in STYLES else []
        yield row
