"""A self-contained page: nothing is fetched, scripts, styles and data are inline.

The page forbids itself the network and every script but the two it names by their hash, so a text that slipped through
unescaped still could not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from string import Template
from typing import Any

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src $hashes; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$css</style>
</head>
<body>
<main>
$body
</main>
<script type="application/json" id="figures">$data</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")


def page(heading: str, body: str, plots: dict[str, Any]) -> str:
    """A whole page: its title, its body (HTML), and the figures that ``place`` put among ``plots``."""
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs().replace("\r", "")
    script = _resource("page.js")
    return _PAGE.substitute(
        title=escape(heading),
        css=_resource("page.css"),
        body=body,
        data=inline_json(plots),
        plotly=plotly,
        script=script,
        hashes=f"{_hash(plotly)} {_hash(script)}",
    )


def inline_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (resources.files("haqsearch.report") / name).read_text(encoding="utf-8")


def card(heading: str, *parts: str, kind: str = "") -> str:
    """A section (HTML) of ``parts``, which are HTML; ``kind`` is a further class of it."""
    return f'<section class="card {kind}"><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def caption(text: str) -> str:
    """What stands under a figure."""
    return f'<p class="caption">{escape(text)}</p>'


def place(plots: dict[str, Any], name: str, figure: Any, width: int = 0) -> str:
    """A place for a figure, with its height reserved, and the figure put among ``plots``."""
    plots[name] = json.loads(figure.to_json())
    style = f"height:{figure.layout.height}px" + (f";min-width:{width}px" if width else "")
    return f'<div class="plot" id="{escape(name)}" style="{style}"></div>'
