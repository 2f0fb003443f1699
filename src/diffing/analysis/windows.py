"""Stretches of text around chosen tokens, with a value at every token: rows of `examples.parquet`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder, text_with_offsets, token_strings
from diffing.analysis.top_examples import Ranked
from diffing.core.tables import table_of
from diffing.data.token_table import TokenTable

_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class WindowRow:
    """`examples.parquet`: the text around the token where a unit is strongest in a document.

    `sequence` is the document's row in its dataset; `start` (first token shown) and `peak` are positions in it; `score`
    is the value at the peak. `starts` and `ends` are characters of `text`; `values` has one number per token.
    """

    unit: int
    kind: str
    rank: int
    dataset: str
    sequence: int
    start: int
    peak: int
    score: float
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class _Text:
    """The part of a row that units share."""

    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


def windows(tokens: TokenTable, row_M: np.ndarray, before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """First row and end (exclusive) of the tokens around each row, within its sequence.

    Args:
        tokens: The corpus.
        row_M: Rows of the token table.
        before: Tokens before the row.
        after: Tokens after it.
    """
    sequence_M = tokens.sequence_N[row_M]
    start_M = np.maximum(row_M - before, tokens.starts[sequence_M])
    return start_M, np.minimum(row_M + after + 1, tokens.starts[sequence_M + 1])


def window_table(
    tokens: TokenTable, tokenizer: Decoder, ranked: Ranked, kind_M: Sequence[str],
    values: Callable[[int], np.ndarray] | Sequence[np.ndarray], before: int, after: int,
) -> pa.Table:  # fmt: skip
    """A `WindowRow` for each entry of `ranked`, in its order.

    Args:
        tokens: The corpus.
        tokenizer: Decodes it.
        ranked: Where units are strongest.
        kind_M: What sort of example each entry is.
        values: By entry, a value for each token of its window (`windows` says which); NaN becomes null.
        before: Tokens shown before the peak.
        after: Tokens shown after it.
    """
    value_of = values if callable(values) else values.__getitem__
    start_M, stop_M = windows(tokens, ranked.row, before, after)
    order = np.lexsort((stop_M, start_M))
    texts = _texts(tokens, tokenizer, start_M[order], stop_M[order])
    parts, rows = [], []
    for i, text in zip(order.tolist(), texts, strict=True):
        rows.append(_row(tokens, ranked, i, str(kind_M[i]), int(start_M[i]), text, value_of(i)))
        if len(rows) == _ROWS_AT_ONCE:
            parts.append(table_of(WindowRow, rows))
            rows = []
    parts.append(table_of(WindowRow, rows))
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_tables(parts).combine_chunks().take(pa.array(back))


def _texts(tokens: TokenTable, tokenizer: Decoder, start_M: np.ndarray, stop_M: np.ndarray) -> Iterator[_Text]:
    """The text of each window; equal ones follow each other and are decoded once."""
    names: dict[int, str] = {}
    last, text = (-1, -1), None
    for window in zip(start_M.tolist(), stop_M.tolist(), strict=True):
        if text is None or window != last:
            ids = tokens.ids_N[window[0] : window[1]].tolist()
            names |= token_strings(tokenizer, set(ids) - names.keys())
            decoded, offsets = text_with_offsets(tokenizer, ids)
            starts, ends = (tuple(o[k] for o in offsets) for k in (0, 1))
            text = _Text(decoded, tuple(names[i] for i in ids), tuple(ids), starts, ends)
            last = window
        yield text


def _row(
    tokens: TokenTable, ranked: Ranked, i: int, kind: str, start: int, text: _Text, values_T: np.ndarray
) -> WindowRow:
    assert len(values_T) == len(text.tokens)
    sequence = int(tokens.sequence_N[ranked.row[i]])
    return WindowRow(
        unit=int(ranked.unit[i]), kind=kind, rank=int(ranked.rank[i]), dataset=tokens.dataset_of(sequence),
        sequence=int(tokens.documents[sequence]), start=int(tokens.position_N[start]),
        peak=int(tokens.position_N[ranked.row[i]]), score=float(ranked.value[i]), text=text.text, tokens=text.tokens,
        token_ids=text.token_ids, starts=text.starts, ends=text.ends,
        values=tuple(None if np.isnan(v) else float(v) for v in values_T),
    )  # fmt: skip
