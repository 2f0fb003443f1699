"""Numbers, durations and sizes as people read them."""

import math
import re

from markupsafe import Markup, escape

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNKNOWN = "–"
_INTERVAL = re.compile(r"(\[[^\[\]]*\])")


def number(value: float | int | None) -> str:
    """Three significant digits; integers whole with thousands separators; unknown is an en dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return _float(value).replace("-", "−")


def _float(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if not 1e-4 <= abs(rounded) < 1e9:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:#.3g}"


def intervals(text: str) -> Markup:
    """Escaped text in which `[low, high]` is never broken over two lines."""
    parts = _INTERVAL.split(text)
    return Markup("").join(
        Markup('<span class="whole">{}</span>').format(p) if i % 2 else escape(p) for i, p in enumerate(parts)
    )


def duration(seconds: float | None) -> str | None:
    """`42.1 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: int | None) -> str | None:
    """Bytes in binary units."""
    if n_bytes is None:
        return None
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def ago(seconds: float) -> str:
    """A time that lies back, in its largest unit."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"
