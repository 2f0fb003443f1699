"""What the heat map component is handed: text, colours, the token read first, scale and legend."""

import json

import pytest

pytest.importorskip("streamlit")

from diffing.core.blocks import Heatmap, HeatToken
from diffing.ui import heatmap
from diffing.ui.heatmap import choosable_heatmap, heatmaps


class Component:
    """Stands for the mounted component: keeps what it is given, answers as the browser would."""

    def __init__(self, **state):
        self.calls, self.state = [], state

    def __call__(self, key, data, **callbacks):
        json.dumps(data, allow_nan=False)
        self.calls.append((key, data))
        return self.state

    @property
    def data(self):
        return self.calls[-1][1]


@pytest.fixture
def drawn(monkeypatch):
    """The component in use; `drawn(selected=…)` changes what it answers."""

    def use(**state):
        mine = Component(**state)
        monkeypatch.setattr(heatmap, "_component", lambda: mine)
        return mine

    return use


def tokens(*values):
    return tuple(HeatToken(f"t{i}", v) for i, v in enumerate(values))


def step(name):
    return int(name[1:])


def test_colours_follow_the_square_root_of_the_value(drawn):
    mine = drawn()
    heatmaps([Heatmap("title", tokens(4.0, 1.0, 0.25, 0.0, None, 9.0), 4.0, "nats")], 4.0, "nats", "k")
    colours = [t["colour"] for t in mine.data["items"][0]["tokens"]]
    assert colours == ["h16", "h8", "h4", "", "", "h16"]
    assert mine.calls[0][0] == "k"
    assert mine.data["items"][0]["title"] == "title"


def test_the_legend(drawn):
    mine = drawn()
    heatmaps([Heatmap("", tokens(1.0), 4.0, "nats")], 4.0, "nats", "k")
    assert mine.data["scale"] == [f"h{i}" for i in range(17)]
    assert [float(t) for t in mine.data["ticks"]] == [0, 0.25, 1, 2.25, 4]
    assert (mine.data["unit"], mine.data["selectable"]) == ("nats", False)


def test_a_signed_scale_has_two_sides(drawn):
    mine = drawn()
    chosen = choosable_heatmap(tokens(2.0, -2.0, -0.5, 0.0, None), 2.0, "nats", "k", 1, is_signed=True)
    assert chosen == 1
    assert [t["colour"] for t in mine.data["items"][0]["tokens"]] == ["h16", "g16", "g8", "", ""]
    assert mine.data["scale"] == [*(f"g{i}" for i in range(16, 0, -1)), *(f"h{i}" for i in range(17))]
    assert [float(t.replace("−", "-")) for t in mine.data["ticks"]] == [-2, 0, 2]


def test_negative_values_of_an_unsigned_scale_have_no_colour(drawn):
    mine = drawn()
    heatmaps([Heatmap("", tokens(-1.0, 1.0), 1.0, "")], 1.0, "", "k")
    assert [t["colour"] for t in mine.data["items"][0]["tokens"]] == ["", "h16"]


@pytest.mark.parametrize(
    ("values", "peak"), [((0.1, 3.0, 2.0), 1), ((None, None), 0), ((-5.0, 3.0), 0), ((None, 0.0), 1), ((2.0, 2.0), 0)]
)
def test_the_token_read_first_is_the_one_farthest_from_zero(values, peak, drawn):
    mine = drawn()
    heatmaps([Heatmap("", tokens(*values), 3.0, "")], 3.0, "", "k")
    assert mine.data["items"][0]["at"] == peak


def test_each_example_on_the_scale_it_names(drawn):
    mine = drawn()
    heatmaps([Heatmap("a", tokens(1.0), 1.0, ""), Heatmap("b", tokens(1.0), 4.0, "")], 4.0, "", "k")
    assert [i["tokens"][0]["colour"] for i in mine.data["items"]] == ["h16", "h8"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<b>&", [["<b>&", False]]),
        (" the", [[" the", False]]),
        ("\u202eevil", [["U+202E", True], ["evil", False]]),
        ("a\nb", [["a", False], ["↵", True], ["\nb", False]]),
        ("\x00", [["U+0000", True]]),
        ("\u200b\u2066x", [["U+200B", True], ["U+2066", True], ["x", False]]),
        ("👩\u200d🔬", [["👩\u200d🔬", False]]),
        ("\u200d", [["U+200D", True]]),
        ("", []),
    ],
)
def test_text_as_it_is_and_marks_for_what_has_no_glyph(text, parts, drawn):
    mine = drawn()
    heatmaps([Heatmap("", (HeatToken(text, 1.0),), 1.0, "")], 1.0, "", "k")
    assert mine.data["items"][0]["tokens"][0]["parts"] == parts


def test_the_lines_of_a_token(drawn):
    mine = drawn()
    given = (HeatToken(" a", 0.125, ("one", "two")), HeatToken(" b\u202e", 0.125), HeatToken("c", None))
    heatmaps([Heatmap("", given, 1.0, "nats")], 1.0, "nats", "k")
    lines = [t["lines"] for t in mine.data["items"][0]["tokens"]]
    assert lines == [["one", "two"], ["' b\\u202e'", "0.125 nats"], ["'c'", "– nats"]]


@pytest.mark.parametrize("maximum", [0.0, -1.0])
def test_a_scale_without_length(maximum, drawn):
    mine = drawn()
    heatmaps([Heatmap("", tokens(0.0, 0.0), maximum, "")], max(maximum, 0.0), "", "k")
    assert [t["colour"] for t in mine.data["items"][0]["tokens"]] == ["", ""]


def test_nothing_to_show_draws_nothing(drawn):
    mine = drawn()
    heatmaps([], 1.0, "nats", "k")
    assert mine.calls == []


@pytest.mark.parametrize(
    ("selected", "chosen"), [(None, 2), (0, 0), (3, 3), (4, 2), (-1, 2), ("1", 2), (1.0, 2), ({"a": 1}, 2)]
)
def test_the_choice_of_the_browser_counts_when_it_is_a_token(selected, chosen, drawn):
    mine = drawn(selected=selected)
    assert choosable_heatmap(tokens(1.0, 1.0, 1.0, 1.0), 1.0, "", "k", 2) == chosen
    assert mine.data["items"][0]["at"] == 2
    assert mine.data["selectable"] is True
