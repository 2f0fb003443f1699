"""Where several results agree: the tokens and the documents that they rank high."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.dashboard.rankings import Kind, Pairwise, Placing, pairwise, ranked, rows, sizes


@dataclass(frozen=True)
class TokenPlacings:
    """A token that is in the top k of at least one result.

    Args:
        token_id: Vocabulary id.
        token: As people read it.
        mean_rank: Over all results; where it is not ranked, one past the last counts.
        placings: By result, in the order given.
    """

    token_id: int
    token: str
    mean_rank: float
    placings: tuple[Placing, ...]


@dataclass(frozen=True)
class DocumentPlacings:
    """A document that is in the top k of at least one result; fields as in `TokenPlacings`."""

    dataset: str
    document: int
    mean_rank: float
    placings: tuple[Placing, ...]


@dataclass(frozen=True)
class TokenAgreement:
    """Rows by mean rank, and the results pairwise.

    Args:
        k: Length of the heads.
        n_ranked: Tokens that each result ranks.
        rows: Tokens in the top k of at least one result.
        pairwise: Agreement of heads and of whole rankings.
    """

    k: int
    n_ranked: tuple[int, ...]
    rows: tuple[TokenPlacings, ...]
    pairwise: Pairwise


@dataclass(frozen=True)
class DocumentAgreement:
    """As `TokenAgreement`, for the documents of the datasets that all results read.

    Args:
        k: Length of the heads.
        n_ranked: Documents of these datasets that each result ranks.
        rows: Documents in the top k of at least one result.
        pairwise: Agreement of heads and of whole rankings.
        datasets: The datasets that are compared.
        left_out: Datasets of some result that are not the same text in all of them.
    """

    k: int
    n_ranked: tuple[int, ...]
    rows: tuple[DocumentPlacings, ...]
    pairwise: Pairwise
    datasets: tuple[str, ...]
    left_out: tuple[str, ...]


_TOKENS = Kind("token_scores", "token_id", "token_id, token")
_DOCUMENTS = Kind("document_scores", "dataset, document", "dataset, document")


def token_agreement(results: Sequence[Result], k: int) -> TokenAgreement:
    """Compare the token rankings of results of one base model.

    Args:
        results: One or more; each must rank tokens.
        k: Length of the heads.

    Raises:
        UserError: They are of different base models, or one ranks no tokens.
    """
    _check(results, k, "tokens", _TOKENS)
    bases = list(dict.fromkeys(r.manifest["pair"]["base_id"] for r in results))
    if len(bases) > 1:
        raise UserError(
            f"Token ids mean the same within one base model only, and these results are of {' and '.join(bases)}; "
            "compare results of one base model."
        )
    with ranked(results, _TOKENS) as db:
        n_ranked = sizes(db, len(results))
        found = tuple(TokenPlacings(*r.shown, r.mean_rank, r.placings) for r in rows(db, _TOKENS, n_ranked, k))
        return TokenAgreement(k, n_ranked, found, pairwise(db, len(results), k))


def document_agreement(results: Sequence[Result], k: int) -> DocumentAgreement:
    """Compare the document rankings of results, over the datasets that are the same text in all of them.

    Args:
        results: One or more, of any base models; each must rank documents.
        k: Length of the heads.

    Raises:
        UserError: One ranks no documents, or they have no dataset in common.
    """
    _check(results, k, "documents", _DOCUMENTS)
    read = [_datasets(r) for r in results]
    names = tuple(dict.fromkeys(name for sources in read for name in sources))
    common = tuple(n for n in names if all(n in sources and sources[n] == read[0].get(n) for sources in read))
    if not common:
        raise UserError("These results have no dataset in common; compare results of the same texts.")
    left_out = tuple(n for n in names if n not in common)
    with ranked(results, _DOCUMENTS, common) as db:
        n_ranked = sizes(db, len(results))
        found = tuple(DocumentPlacings(*r.shown, r.mean_rank, r.placings) for r in rows(db, _DOCUMENTS, n_ranked, k))
        return DocumentAgreement(k, n_ranked, found, pairwise(db, len(results), k), common, left_out)


def _check(results: Sequence[Result], k: int, what: str, kind: Kind) -> None:
    assert k >= 1
    if not results:
        raise UserError("There is nothing to compare; choose at least one result.")
    if lacking := next((r for r in results if kind.table not in r.tables()), None):
        raise UserError(f"The {lacking.method} result in {lacking.folder} ranks no {what}; leave it out.")


def _datasets(result: Result) -> dict[str, Any]:
    """Where each dataset was read from; text from a program's memory is known by its tokens alone."""
    data = result.manifest["data"]
    sources = {d["name"]: d for d in data["spec"].get("datasets", ())}
    return {n: s if s["id"] != "memory" else {**s, "fingerprint": data["fingerprint"]} for n, s in sources.items()}
