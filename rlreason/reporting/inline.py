"""One HTML file from the page's sources and the runs' data. It opens from disk, offline: its Content-Security-Policy
lets it fetch nothing and run nothing but its own script, which is named by its hash.

The sources are ES modules; here their imports and exports are taken off and they are laid end to end in one module,
so names at the top of a file are the whole page's. The data are base64, in which no text of a model can end a script.

Left out: a bundler and minification; the script is a fraction of the data.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files

MODULES = ("dom", "data", "filter", "charts", "overview", "tokens", "traceview", "list", "browser", "main")
"""The page's modules, each after those it imports."""

_IMPORT = re.compile(r"^import\b[^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |class |const |let )", re.MULTILINE)


def build(title: str, payloads: Mapping[str, bytes]) -> str:
    """The page with ``payloads`` by element id. The same input gives the same bytes."""
    page = files("rlreason.reporting").joinpath("page")
    sources = [page.joinpath("js", f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    script = "\n".join(_EXPORT.sub("", _IMPORT.sub("", source)) for source in sources)
    style = page.joinpath("style.css").read_text(encoding="utf-8")
    allowed = f"script-src {_hash(script)}; style-src {_hash(style)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    data = "\n".join(
        f'<script type="application/octet-stream" id="{html.escape(name)}">{_packed(content)}</script>'
        for name, content in payloads.items()
    )
    parts = {"POLICY": policy, "TITLE": html.escape(title), "STYLE": style, "DATA": data, "SCRIPT": script}
    shell = page.joinpath("index.html").read_text(encoding="utf-8")
    # One pass, so that nothing inside a part is taken for a place to put another one.
    return re.sub(r"@@([A-Z]+)@@", lambda found: parts[found[1]], shell)


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
