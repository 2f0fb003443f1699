"""Windows of text: where they start and end, what they hold, and how they are drawn."""

import numpy as np
import pytest

from diffing.analysis import windows as module
from diffing.analysis.token_text import token_string
from diffing.analysis.top_examples import Ranked
from diffing.analysis.windows import window_table, windows
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, TokenSequence
from diffing.display.windows import window_heatmap
from diffing.models.tiny import tiny_tokenizer

TEXTS = {"web": ["the heron stood in the thin smoke", "x", "Ein Gruß: ← und 🦉 war da"], "chat": ["a bell rang"]}


def corpus():
    tokenizer, sequences = tiny_tokenizer(), []
    for name, texts in TEXTS.items():
        for i, text in enumerate(texts):
            ids = np.array(tokenizer(text)["input_ids"], dtype=np.int32)
            flags = np.zeros(len(ids), dtype=bool)
            sequences.append(TokenSequence(name, 10 + i, ids, np.zeros(len(ids), dtype=np.uint8), flags, flags))
    return Corpus(tuple(TEXTS), tuple(sequences), "made-up", (), {n: len(t) for n, t in TEXTS.items()})


TABLE = TokenTable.of(corpus())


def ranked_at(rows, units=None):
    rows = np.array(rows)
    units = np.arange(len(rows)) if units is None else np.array(units)
    return Ranked(units, np.zeros(len(rows), int), rows, np.linspace(1, 2, len(rows)), TABLE.sequence_N[rows])


def test_windows_end_where_the_sequence_does():
    for row in range(len(TABLE)):
        (start,), (stop,) = windows(TABLE, np.array([row]), 3, 2)
        here = TABLE.rows_of(int(TABLE.sequence_N[row]))
        assert (start, stop) == (max(here.start, row - 3), min(here.stop, row + 3))


@pytest.mark.parametrize("at_once", [1, 3, 2048])
def test_rows_hold_the_text_around_the_peak(monkeypatch, at_once):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", at_once)
    tokenizer = tiny_tokenizer()
    rows = [len(TABLE) - 1, 5, 5, int(TABLE.starts[1]), int(TABLE.starts[2]) + 9, 0]
    ranked = ranked_at(rows)
    start_M, stop_M = windows(TABLE, ranked.row, 4, 2)
    values = [np.arange(a, b, dtype=np.float64) for a, b in zip(start_M, stop_M, strict=True)]
    values[1][0] = np.nan
    kinds = ["top", "top", "sample", "top", "top", "top"]
    table = window_table(TABLE, tokenizer, ranked, kinds, values, 4, 2)
    assert window_table(TABLE, tokenizer, ranked, kinds, lambda i: values[i], 4, 2).equals(table)
    for i, row in enumerate(table.to_pylist()):
        ids = TABLE.ids_N[start_M[i] : stop_M[i]].tolist()
        assert (row["unit"], row["kind"], row["score"]) == (i, kinds[i], ranked.value[i])
        assert row["token_ids"] == ids
        assert row["tokens"] == [token_string(tokenizer, t) for t in ids]
        assert row["text"] == tokenizer.decode(ids)
        assert row["ends"][-1] == len(row["text"])
        sequence = int(TABLE.sequence_N[rows[i]])
        assert (row["dataset"], row["sequence"]) == (TABLE.dataset_of(sequence), TABLE.documents[sequence])
        assert row["start"] == TABLE.position_N[start_M[i]]
        assert row["peak"] == TABLE.position_N[rows[i]]
        assert row["values"] == [None if np.isnan(v) else v for v in values[i]]


def test_equal_windows_are_decoded_once(monkeypatch):
    calls = []
    plain = module.text_with_offsets
    monkeypatch.setattr(module, "text_with_offsets", lambda *a: calls.append(1) or plain(*a))
    rows = [5, 9, 5, 9, 5]
    window_table(TABLE, tiny_tokenizer(), ranked_at(rows), ["top"] * 5, lambda i: np.zeros(4), 2, 1)
    assert len(calls) == 2


def test_no_entries_give_an_empty_table():
    table = window_table(TABLE, tiny_tokenizer(), ranked_at(np.empty(0, int)), [], [], 2, 1)
    assert table.num_rows == 0
    assert table.column_names[:3] == ["unit", "kind", "rank"]


def test_heat_maps_cut_at_the_maximum_and_keep_the_numbers():
    row = {"tokens": ["a", " b", "c", "d"], "token_ids": [1, 2, 3, 4], "values": [None, 5.0, -1.0, 0.5]}
    found = window_heatmap(row, 2.0, "norm", "document 3")
    assert [t.value for t in found.tokens] == [None, 2.0, -1.0, 0.5]
    assert found.tokens[1].hover == ("' b' (id 2)", "5.00 norm")
    assert found.tokens[0].hover == ("'a' (id 1)", "no value")
    assert (found.title, found.maximum, found.unit) == ("document 3", 2.0, "norm")
