"""The mean differences of a result, as directions to steer along."""

from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.core.tables import rows_of
from diffing.display.numbers import number
from diffing.methods.normdiff.results import VectorRow

_KINDS = ("all", "position", "template")
_EVERY_DATASET = "all"


def named_vectors(result: Result) -> tuple[NamedVector, ...]:
    """Mean differences of the residual stream: over all tokens, then by position, then by template token.

    Within a kind by dataset (all data first, then in the order of the corpus) and by layer. A mean difference of
    length 0 is no direction and is left out.

    Raises:
        UserError: The result has no table of vectors, or it is damaged.
    """
    rows: list[VectorRow] = [r for r in rows_of(VectorRow, result.table("vectors")) if r.site == "residual" and r.norm]
    datasets = list(dict.fromkeys([_EVERY_DATASET, *(r.dataset for r in rows)]))
    rows.sort(key=lambda r: (_KINDS.index(r.kind), datasets.index(r.dataset), r.layer))
    return tuple(NamedVector(f"{r.key}/mean_delta", _label(r), r.layer, r.norm, _note(r)) for r in rows)


def _label(row: VectorRow) -> str:
    tokens = {
        "all": "all tokens",
        "position": f"position {row.position}",
        "template": f"template token {row.token!r}",
    }[row.kind]
    dataset = "all data" if row.dataset == _EVERY_DATASET else row.dataset
    return f"mean difference · {dataset}, {tokens} · layer {row.layer}"


def _note(row: VectorRow) -> str:
    n_tokens = f"{row.n_tokens:,} token{'s' if row.n_tokens != 1 else ''}"
    return n_tokens if row.explained is None else f"{n_tokens}, explained share {number(row.explained)}"
