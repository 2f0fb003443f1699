"""The rankings of several results, side by side in a database in memory."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffing.analysis.agreement import overlap_at, rank_correlation
from diffing.core.result import Result

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Placing:
    """Where one result ranks an item: 1 is best, items of one score share a rank; None where it does not rank it."""

    rank: int | None
    score: float | None


@dataclass(frozen=True)
class Pairwise:
    """Each result beside each other one, in the order given; None where it cannot be said.

    Args:
        overlap: Share of the top k in common (of the shorter ranking's length where that is less); which items of one
            score are in a head is left to chance.
        chance: The share expected of rankings in random order.
        correlation: Spearman's ρ over the items that both rank.
    """

    overlap: Matrix
    chance: Matrix
    correlation: Matrix


class Kind(NamedTuple):
    """What is ranked: the table of the ranking, the columns that identify an item, and the two that are shown of it."""

    table: str
    key: str
    shown: str


class Row(NamedTuple):
    """An item in the head of at least one result: the two columns shown of it, its mean rank and its placings."""

    shown: tuple[Any, Any]
    mean_rank: float
    placings: tuple[Placing, ...]


@contextmanager
def ranked(
    results: Sequence[Result], kind: Kind, datasets: Sequence[str] | None = None
) -> Iterator["DuckDBPyConnection"]:
    """A database whose table `ranked` has every result's items: their score, their rank, and their place in an order.

    Items of one score share a rank; their order is a different one in each result, lest rankings that cannot tell
    items apart agree because of the items' ids. Scores that are not finite are not ranked.
    """
    import duckdb

    # isfinite, not isnan: DuckDB believes a file's smallest and largest value, which leave NaN out, and drops isnan.
    parts, given = [], {}
    for n, result in enumerate(results):
        given[f"path_{n}"] = glob.escape(str(result.path(f"tables/{kind.table}.parquet")))
        chosen = " and list_contains($datasets, dataset)" if datasets is not None else ""
        parts.append(
            f"select {n} as result, {kind.shown}, score from read_parquet($path_{n}) where isfinite(score){chosen}"
        )
    if datasets is not None:
        given["datasets"] = list(datasets)
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as db:
        db.execute(
            "create table ranked as select *, rank() over (partition by result order by score desc) as rank, "
            f"row_number() over (partition by result order by score desc, hash(result, {kind.key}), {kind.key}) "
            f"as place, dense_rank() over (order by {kind.key}) as item from ({' union all '.join(parts)})",
            given,
        )
        yield db


def sizes(db: "DuckDBPyConnection", n_results: int) -> tuple[int, ...]:
    """How many items each result ranks."""
    counts = dict(db.execute("select result, count(*) from ranked group by result").fetchall())
    return tuple(counts.get(n, 0) for n in range(n_results))


def rows(db: "DuckDBPyConnection", kind: Kind, n_ranked: tuple[int, ...], k: int) -> list[Row]:
    """The items in a head, the best mean rank first."""
    found = db.execute(
        f"select item, result, rank, score, {kind.shown} from ranked "
        "where item in (select item from ranked where place <= $k) order by item, result",
        {"k": k},
    ).fetchall()
    listed = []
    for _, group in groupby(found, key=lambda row: row[0]):
        members = list(group)
        placed = {result: Placing(rank, score) for _, result, rank, score, *_ in members}
        placings = tuple(placed.get(n, Placing(None, None)) for n in range(len(n_ranked)))
        ranks = [size + 1 if p.rank is None else p.rank for p, size in zip(placings, n_ranked, strict=True)]
        listed.append(Row(members[0][4:], sum(ranks) / len(ranks), placings))
    return sorted(listed, key=lambda row: row.mean_rank)


def pairwise(db: "DuckDBPyConnection", n_results: int, k: int) -> Pairwise:
    """The results' agreement with each other, in heads of `k` items and over all."""
    order = [_column(db, f"select item from ranked where result = {n} order by place") for n in range(n_results)]
    both = combinations_with_replacement(range(n_results), 2)
    cells = {(i, j): (overlap_at(order[i], order[j], [k])[k], _correlation(db, i, j)) for i, j in both}
    cells |= {(j, i): cell for (i, j), cell in cells.items()}
    grid = [[cells[i, j] for j in range(n_results)] for i in range(n_results)]
    return Pairwise(
        overlap=tuple(tuple(overlap.share for overlap, _ in row) for row in grid),
        chance=tuple(tuple(overlap.chance for overlap, _ in row) for row in grid),
        correlation=tuple(tuple(correlation for _, correlation in row) for row in grid),
    )


def _correlation(db: "DuckDBPyConnection", i: int, j: int) -> float | None:
    joined = f"from ranked a join ranked b using (item) where a.result = {i} and b.result = {j} order by item"
    return rank_correlation(_column(db, f"select a.score {joined}"), _column(db, f"select b.score {joined}"))


def _column(db: "DuckDBPyConnection", query: str) -> np.ndarray:
    (values,) = db.execute(query).fetchnumpy().values()
    return np.asarray(values)
