"""What is put between script tags, and the policy that lets nothing else run or be fetched."""

import base64
import hashlib
import json
import re
from typing import Any

from diffing.core.files import finite

_LINK = re.compile(r"<(?=\s*/?\s*a\b)", re.IGNORECASE)


def json_for_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in; NaN and infinities become null."""
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script(source: str) -> str:
    """Our own JavaScript, such that no string in it ends the element."""
    return source.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def figure_for_page(figure: dict[str, Any]) -> dict[str, Any]:
    """Data and layout of a plotly figure without its template (the page has its own) and without links.

    Plotly reads `<a href>` in any text as a link: in model text it stays text.
    """
    layout = {k: v for k, v in figure.get("layout", {}).items() if k != "template"}
    return _without_links({"data": figure.get("data", []), "layout": layout})


def policy(scripts: list[str]) -> str:
    """Content security policy: the given inline scripts may run, nothing may be fetched."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _without_links(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_links(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_links(v) for v in value]
    return _LINK.sub("&lt;", value) if isinstance(value, str) else value
