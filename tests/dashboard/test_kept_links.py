"""A link opens the same pair, results and vector whatever is newest by then."""

import os

import pytest
from visiting import fine


def make_newest(folder, seconds):
    """As if every run of an organism had been finished later than the others."""
    for path in folder.glob("*/*/manifest.json"):
        text = path.read_text(encoding="utf-8")
        start = text.index('"created": "') + len('"created": "')
        path.write_text(text[:start] + f"2099-01-01T00:00:{seconds:02d}+00:00" + text[start + 25 :], encoding="utf-8")
        os.utime(path)


def in_link(app, name):
    """Values of a parameter of the URL."""
    value = app.query_params[name]
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("page", ["try_it", "chat", "steer", "amplify"])
def test_the_pair_stays_when_a_newer_result_arrives(page, visit, copied):
    subjects = sorted(p for p in (copied / "results" / "base").iterdir() if "null" not in p.name)
    first, second = subjects[:2]
    make_newest(first, 1)
    before = fine(visit(copied, page))
    assert before.selectbox(key="pair").value == first.name
    assert in_link(before, "pair") == [first.name]
    link = {name: in_link(before, name)[0] for name in before.query_params}
    make_newest(second, 2)
    assert fine(visit(copied, page)).selectbox(key="pair").value == second.name
    assert fine(visit(copied, page, **link)).selectbox(key="pair").value == first.name


def test_what_is_chosen_to_compare_stands_in_the_link(visit, copied):
    app = fine(visit(copied, "compare"))
    assert in_link(app, "base") == ["base"]
    assert sorted(in_link(app, "organisms")) == sorted(app.multiselect(key="organisms").value)
    kept = [app.multiselect(key="organisms").value[0]]
    fine(app.multiselect(key="organisms").set_value(kept).run())
    assert in_link(app, "organisms") == kept


def test_a_choice_that_is_not_offered_gives_way_to_the_first(visit, copied):
    app = fine(visit(copied, "try_it", base="nothing", pair="neither"))
    assert in_link(app, "base") == [app.selectbox(key="base").value]
    assert in_link(app, "pair") == [app.selectbox(key="pair").value]
