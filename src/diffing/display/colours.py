"""The heat scale: one hue family from the page's colour to its opposite, in two themes.

Lightness runs one way only, so that the scale reads the same with any kind of colour vision and in
grey. Steps are mixed in OKLab (Ottosson 2020, "A perceptual color space for image processing").
Text on a step is black or white, whichever contrasts more (WCAG 2.1 relative luminance); the worst
case of that choice is 4.58 : 1.
"""

import math

N_STEPS = 16
# Lines of one picture, in order (Okabe and Ito 2008).
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LIGHT = ("#ffffff", "#fee6b8", "#f9ad5c", "#d9641e", "#8a2c04", "#4a1200")
DARK = ("#15181c", "#42270f", "#8a4712", "#cf7a1f", "#f6bd62", "#fff0cf")
# The same for values below zero, where a scale has two sides.
LIGHT_FALL = ("#ffffff", "#cfe6fb", "#86bdec", "#3d86c6", "#134f8a", "#04233f")
DARK_FALL = ("#15181c", "#11304d", "#17568c", "#3c8bcb", "#8fc6f2", "#e2f2ff")

Triple = tuple[float, float, float]


def step(value: float | None, maximum: float) -> int | None:
    """Colour step of a value, 0 to `N_STEPS`; None stays None.

    The step follows the square root of `value / maximum`: one large value does not blank the others.
    """
    if value is None or math.isnan(value):
        return None
    if not maximum > 0 or value <= 0:
        return 0
    return round(N_STEPS * min(value / maximum, 1.0) ** 0.5)


def ticks(maximum: float) -> list[float]:
    """Values at the quarters of the scale."""
    return [maximum * (i / 4) ** 2 for i in range(5)]


def scale(anchors: tuple[str, ...]) -> list[str]:
    """`N_STEPS + 1` hex colours through the anchors."""
    labs = [_oklab(a) for a in anchors]
    colours = []
    for i in range(N_STEPS + 1):
        at = i / N_STEPS * (len(labs) - 1)
        left = min(int(at), len(labs) - 2)
        a, b, w = labs[left], labs[left + 1], at - left
        colours.append(_hex((a[0] + w * (b[0] - a[0]), a[1] + w * (b[1] - a[1]), a[2] + w * (b[2] - a[2]))))
    return colours


def text_on(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour`."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, colour))


def contrast(a: str, b: str) -> float:
    """WCAG 2.1 contrast ratio of two hex colours."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.1 relative luminance of a hex colour."""
    r, g, b = _linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def readable(colour: str, page: str, least: float = 4.0) -> str:
    """`colour` moved towards black or white, its hue kept, until it stands out from `page` by contrast `least`."""
    ink, start, end = text_on(page), _oklab(colour), _oklab(text_on(page))
    for i in range(21):
        a, b, w = start, end, i / 20
        mixed = _hex((a[0] + w * (b[0] - a[0]), a[1] + w * (b[1] - a[1]), a[2] + w * (b[2] - a[2])))
        if contrast(mixed, page) >= least:
            return mixed
    return ink


def css(anchors: tuple[str, ...]) -> str:
    """Rules `.h1` … for the steps of one theme; step 0 is the page itself."""
    colours = scale(anchors)
    return "\n".join(f".h{i}{{background:{c};color:{text_on(c)}}}" for i, c in enumerate(colours) if i)


def adaptive_css(prefix: str, light: tuple[str, ...], dark: tuple[str, ...]) -> list[str]:
    """Rules `.<prefix>1` … for the steps of both themes in one, by the element's `color-scheme`."""
    both = zip(scale(light), scale(dark), strict=True)
    return [
        f".{prefix}{i}{{background:light-dark({a},{b});color:light-dark({text_on(a)},{text_on(b)})}}"
        for i, (a, b) in enumerate(both)
        if i
    ]


def _linear(colour: str) -> Triple:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return r, g, b


def _oklab(colour: str) -> Triple:
    r, g, b = _linear(colour)
    l = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)  # noqa: E741
    m = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    s = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    )


def _hex(lab: Triple) -> str:
    lightness, a, b = lab
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(c, 0.0), 1.0))):02x}" for c in linear)


def _gamma(channel: float) -> float:
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055
