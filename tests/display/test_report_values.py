"""Numbers, colours, marks and scripts, each by itself."""

import json
import math

import pytest

from diffing.core.blocks import Heading, Section, Table
from diffing.display import colours
from diffing.display.columns import column_kinds
from diffing.display.numbers import duration, intervals, number, size
from diffing.display.token_marks import flowing, marked
from diffing.report.layout import contents, place
from diffing.report.scripts import json_for_script, script


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0"),
        (1234567, "1,234,567"),
        (-3, "−3"),
        (0.5, "0.500"),
        (0.43219, "0.432"),
        (-0.125, "−0.125"),
        (99.96, "100"),
        (12345.6, "12,300"),
        (0.0001234, "0.000123"),
        (3.1e-6, "3.10×10⁻⁶"),
        (9.999e-7, "1.00×10⁻⁶"),
        (2.5e12, "2.50×10¹²"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float | None, shown: str):
    assert number(value) == shown


def test_durations_and_sizes():
    assert [duration(s) for s in (None, 4.25, 75.2, 7620)] == [None, "4.2 s", "1 min 15 s", "2 h 07 min"]
    assert [size(n) for n in (None, 5 * 2**20, 3 * 2**29)] == [None, "5 MiB", "1.50 GiB"]


def test_intervals_hold_together_and_are_escaped():
    assert intervals("<1 [0, 2]") == '&lt;1 <span class="whole">[0, 2]</span>'


@pytest.mark.parametrize("anchors", [colours.LIGHT, colours.DARK])
def test_heat_scale_is_readable_and_runs_one_way(anchors: tuple[str, ...]):
    steps = colours.scale(anchors)
    assert [steps[0], steps[-1]] == [anchors[0], anchors[-1]]
    assert min(colours.contrast(colours.text_on(c), c) for c in steps) >= 4.5
    lights = [colours.luminance(c) for c in steps]
    assert lights in (sorted(lights), sorted(lights, reverse=True))
    assert len(set(steps)) == colours.N_STEPS + 1


def test_contrast_by_hand():
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert colours.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


def test_colour_steps_follow_the_square_root():
    values = [None, math.nan, -1.0, 0.0, 0.25, 1.0, 4.0, 99.0]
    assert [colours.step(v, 4.0) for v in values] == [None, None, 0, 0, 4, 8, 16, 16]
    assert colours.step(1.0, 0.0) == colours.step(1.0, math.nan) == 0
    assert colours.ticks(16.0) == [0, 1, 4, 9, 16]


def test_marks():
    assert marked(" a\n") == '<span class="ws">␣</span>a<span class="ws">↵</span>'
    assert marked("") == '<span class="ws">empty</span>'
    assert marked("<b>") == "&lt;b&gt;"
    assert flowing(" <b>\t\n") == ' &lt;b&gt;\t<span class="nl"></span>\n'
    assert "U+200D" in marked("\u200d")
    assert "U+200D" not in marked("👩\u200d🚀")


def test_scripts_cannot_end_their_element():
    value = {"</script>": ["<!--", "&", "\u2028", math.inf]}
    text = json_for_script(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": ["<!--", "&", "\u2028", None]}
    assert "</script" not in script("x = '</script>'")


def test_headings_go_down_one_level_at_a_time_and_narrow_tables_stand_together():
    narrow, wide = Table(("a",), ((1,),)), Table(tuple("abcdef"), ())
    placed = place(Section("t", (Heading("x", 3), Heading("y", 3), Heading("z", 2), narrow, narrow, wide, narrow)))
    assert [p.level for p in placed[:3]] == [3, 4, 3]
    assert [p.kind for p in placed[3:]] == ["Tables", "Table", "Tables"]
    assert placed[3].block == (narrow, narrow)
    assert [e.text for e in contents(placed)] == ["x", "z"]


def test_column_kinds():
    table = Table(("t", "n", "s", "l"), (("a", 1, "x", "y" * 50), ("b", None, "1 [0, 2]", None)), "", ("t",))
    assert column_kinds(table) == ["token", "number", "short", "text"]
