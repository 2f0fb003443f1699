"""What the report, the dashboard and the terminal show of a `weight_spectrum` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.methods.weight_spectrum.figures import largest_matrices, map_quantity, short_name

_TITLE = "Spectra of the weight change"
_SHOWN = 12
_HEADLINE = 6
_HEADLINE_TOKENS = 10
_READ = 4
_PARTS = {"mlp": "MLP"}


def section(result: Result) -> Section:
    """The method's section of the report."""
    blocks = (*where(result), *directions(result), *_read(result), *_vectors_1d(result), *left_out(result))
    return Section(_TITLE, blocks)


def headline(result: Result) -> Section:
    """What the terminal prints: parts, the most changed matrices, and what their vectors say."""
    blocks: list[Table | Paragraph] = [part_table(result), matrix_table(result, _HEADLINE)]
    if rows := _largest_vectors(result, _HEADLINE):
        blocks.append(vector_table(rows))
    if any(r["score"] > 0 for r in _scores(result, _HEADLINE_TOKENS)):
        blocks.append(_token_line(result))
    return Section(_TITLE, tuple(blocks))


def where(result: Result) -> list[Block]:
    """How much changed, and where in the model."""
    quantity = "‖ΔW‖ / ‖W‖" if map_quantity(result) == "relative" else "‖ΔW‖"
    return [
        Paragraph(
            "ΔW is the finetuned model's weight minus the base's, as their files hold them; ‖·‖ is the Frobenius norm. "
            "No text is read."
        ),
        Heading("Where the model changed"),
        part_table(result),
        Figure(
            "map",
            f"{quantity} of each matrix by layer",
            f"Heat map with a row for each layer and a column for each matrix, coloured by {quantity}.",
        ),
    ]


def part_table(result: Result) -> Table:
    """One line per part of the model."""
    cells = tuple(
        (_PARTS.get(r["part"], r["part"]), r["n_weights"], r["n_moved_weights"], r["norm"], r["relative"], r["share"])
        for r in result.table("parts").to_pylist()
    )
    return Table(("part", "weights", "changed", "‖ΔW‖", "‖ΔW‖ / ‖W‖", "share of ‖ΔW‖²"), cells, _compared(result))


def _compared(result: Result) -> str:
    kinds = set(result.table("weights")["kind"].to_pylist())
    return (
        "All weights that both models have."
        if kinds == {"difference"}
        else "The weights that the adapter changes; all others are the base's."
    )


def directions(result: Result) -> list[Block]:
    """Along how many directions."""
    return [
        Heading("Along how many directions"),
        matrix_table(result, _SHOWN),
        Figure(
            "spectra",
            "Squared singular values of the most changed matrix of each kind, as shares of ‖ΔW‖²; dotted: a random "
            "change of the same shape and rank",
            "Lines of the share of each singular value, falling, one for the most changed matrix of each kind.",
        ),
    ]


def matrix_table(result: Result, n: int) -> Table:
    """The most changed matrices and how concentrated their change is."""
    cells = tuple(
        (
            short_name(w), w["norm"], w["relative"], w["largest"], w["stable_rank"], w["null_stable_rank"],
            w["effective_rank"], w["null_effective_rank"], w["rank"],
        )
        for w in largest_matrices(result)[:n]
    )  # fmt: skip
    columns = (
        "matrix", "‖ΔW‖", "‖ΔW‖ / ‖W‖", "σ₁", "stable rank", "if random", "effective rank", "if random ", "at most",
    )  # fmt: skip
    caption = (
        "The most changed matrices. Stable rank: ‖ΔW‖²/σ₁²; effective rank: (Σσ²)²/Σσ⁴; if random: of a change of the "
        "same shape and rank without structure; at most: the rank of the adapter."
    )
    return Table(columns, cells, caption)


def _largest_vectors(result: Result, n: int) -> list[dict[str, Any]]:
    rows = [r for r in result.table("vectors").to_pylist() if r["positive"]]
    return sorted(rows, key=lambda r: -r["singular_value"])[:n]


def vector_table(rows: list[dict[str, Any]]) -> Table:
    """Tokens read from output vectors."""
    cells = tuple(
        (
            f"{short_name(r)} · {r['index']}", r["singular_value"], r["base_out"],
            joined(r["positive"][:_READ]), joined(r["negative"][:_READ]),
        )
        for r in rows
    )  # fmt: skip
    caption = (
        "Output vectors of the largest singular values, read through the final norm and head. Base: how much the "
        "base's own matrix writes along the vector, a random direction being 1."
    )
    return Table(("vector", "σ", "base", "tokens of +", "tokens of −"), cells, caption)


def joined(tokens: list[str]) -> str:
    """Tokens side by side, quoted as Python would."""
    return "  ".join(repr(t)[1:-1].strip() or repr(t) for t in tokens)


def _read(result: Result) -> list[Block]:
    rows = _largest_vectors(result, _SHOWN)
    if not rows:
        return []
    return [
        Heading("What it writes"),
        vector_table(rows),
        Paragraph(
            "Top tokens are ranked by the log of their mean probability over both ends of all output vectors, weighted "
            "by singular values, beside directions that the base's own matrices write at random inputs. "
            f"{_beyond(result)} What later layers make of a vector, this does not show."
        ),
    ]


def _beyond(result: Result) -> str:
    """How many tokens are more than the best of random directions."""
    threshold = result.manifest["facts"]["token_threshold"]
    n = sum(s > threshold for s in result.table("token_scores")["score"].to_pylist())
    found = "no token exceeds" if n == 0 else f"{n} token{'s exceed' if n > 1 else ' exceeds'}"
    return f"Of all tokens, the best of random directions reaches {threshold:.3g} (95 %): {found} that."


def _scores(result: Result, n: int) -> list[dict[str, Any]]:
    if "token_scores" not in result.tables():
        return []
    return result.table("token_scores").slice(0, n).to_pylist()


def _token_line(result: Result) -> Table:
    shown = joined([r["token"] for r in _scores(result, _HEADLINE_TOKENS) if r["score"] > 0])
    return Table(("tokens read from all output vectors",), ((shown,),), "")


def _vectors_1d(result: Result) -> list[Block]:
    """Norms and biases that changed."""
    rows = [w for w in result.table("weights").to_pylist() if w["n_in"] is None and w["norm"] > 0]
    if not rows:
        return []
    rows.sort(key=lambda w: (-(w["relative"] or 0), w["unit"]))
    cells = tuple((short_name(w), w["n_out"], w["norm"], w["relative"], w["share_moved"]) for w in rows[:_SHOWN])
    columns = ("weight", "numbers", "‖Δw‖", "‖Δw‖ / ‖w‖", "share that moved")
    return [Heading("Norms and biases"), Table(columns, cells, f"The most changed of {len(rows)} that changed.")]


def left_out(result: Result) -> list[Block]:
    """What is not compared."""
    rows = result.table("left_out").to_pylist()
    if not rows:
        return []
    cells = tuple((r["name"], r["where"], r["reason"]) for r in rows[:_SHOWN])
    caption = f"{len(rows)} tensors in all." if len(rows) > _SHOWN else ""
    return [Heading("What is not compared"), Table(("tensor", "of", "why"), cells, caption)]
