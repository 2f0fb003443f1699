"""The mean differences of a result, as directions to steer along."""

from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.core.tables import rows_of
from diffing.display.numbers import number
from diffing.methods.activation_difference_lens.results import PositionRow
from diffing.methods.activation_difference_lens.words import place_name


def named_vectors(result: Result) -> tuple[NamedVector, ...]:
    """By layer, dataset and place; a mean of length 0 is no direction and is left out.

    Raises:
        UserError: The result lacks its table, or it is damaged.
    """
    rows: list[PositionRow] = rows_of(PositionRow, result.table("positions"))
    return tuple(NamedVector(r.tensor, _label(r), r.layer, r.norm, _note(r)) for r in rows if r.norm)


def _label(row: PositionRow) -> str:
    return f"mean difference · {row.dataset}, {place_name(row.kind, row.position)} · layer {row.layer}"


def _note(row: PositionRow) -> str:
    documents = f"{row.n_documents:,} document{'s' if row.n_documents != 1 else ''}"
    return documents if row.explained is None else f"{documents}, explained share {number(row.explained)}"
