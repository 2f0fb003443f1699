"""What report, dashboard and terminal show of a dictionary."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, HeatmapList, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.display.windows import window_heatmap

_SHOWN_LATENTS = 20
_WITH_EXAMPLES = 6
_EXAMPLES_EACH = 3
_SHOWN_TEXTS = 6
_HELD = {"ablate": "finetuned, held down", "add": "base, held up"}
UNIT = "activation"
_FIGURES = {
    "latents": (
        "Live latents by relative decoder norm and by ν of the errors; dotted: thresholds of the tags, and ν = 0.2 "
        "above which a finetuned-only latent is one that was shrunk",
        "Scatter of latents, relative norm against latent scaling.",
    ),
    "norms": ("Live latents by relative norm, logarithmic counts", "Histogram of relative decoder norms."),
    "frequency": ("Live latents by how often they are active", "Histogram of activation frequencies."),
    "causal": (
        "KL from the unchanged model when latents are taken out of or put into it: the claimed ones (diamonds) and "
        "sets of random latents of equal size (circles)",
        "Points of KL by dataset for claimed and for random latents.",
    ),
    "training": ("FVE, active latents per token and dead latents over training", "Curves of the training."),
}
_ENERGIES = (
    "Live latents by how often they are active and by their share of the difference's energy",
    "Scatter of latents, frequency against energy.",
)


def section(result: Result, title: str, intro: str) -> Section:
    """The method's section of the report."""
    if result.manifest["facts"].get("is_zero"):
        return Section(title, (Paragraph(intro), Paragraph(_NOTHING)))
    return Section(title, (Paragraph(intro), *quality(result), *latents(result), *causes(result), *training(result)))


_NOTHING = "The two models' activations are the same at every token: there is no difference to learn."


def headline(result: Result, title: str) -> Section:
    """What the terminal prints."""
    if result.manifest["facts"].get("is_zero"):
        return Section(title, (Paragraph(_NOTHING),))
    return Section(title, (quality_table(result), latent_table(result, 10), *_causal_tables(result)))


def is_pair(result: Result) -> bool:
    """Whether the dictionary reads both models, rather than their difference."""
    return result.manifest["facts"]["input"] == "pair"


def quality(result: Result) -> list[Block]:
    """How good the dictionary is, before what it says."""
    facts = result.manifest["facts"]
    spec = facts["dictionary"]
    trained = (
        f"trained on {facts['tokens_trained']:,} tokens, each of {facts['unique_tokens']:,} about "
        f"{facts['epochs']:.1f} times"
        if facts["tokens_trained"]
        else "opened, not trained here"
    )
    kept = f", {spec['k']} active per token" if spec["sparsity"] in ("batch_topk", "topk") else ""
    blocks: list[Block] = [
        Heading("How good the dictionary is"),
        Paragraph(f"{spec['n_latents']:,} latents, {spec['sparsity']}{kept}, at {facts['slot']}; {trained}."),
        quality_table(result),
    ]
    if result.table("loss_recovered").num_rows:
        blocks.append(_recovered(result))
    return blocks


def quality_table(result: Result) -> Table:
    """FVE, L0 and dead share, held-out documents first."""
    rows = sorted(result.table("quality").to_pylist(), key=lambda r: (not r["is_held_out"], r["dataset"] != "all"))
    sites = list(dict.fromkeys(r["site"] for r in rows))
    by_key = {(r["dataset"], r["is_held_out"], r["site"]): r for r in rows}
    lines = []
    for dataset, is_held in dict.fromkeys((r["dataset"], r["is_held_out"]) for r in rows):
        mine = [by_key.get((dataset, is_held, site)) for site in sites]
        first = next(r for r in mine if r is not None)
        lines.append(
            (
                dataset, "held out" if is_held else "learned from", first["n_tokens"],
                *(None if r is None else r["fve"] for r in mine), first["l0"], first["dead_share"],
            )
        )  # fmt: skip
    columns = ("dataset", "documents", "tokens", *(f"FVE {s}" for s in sites), "L0", "silent")
    return Table(
        columns,
        tuple(lines),
        "FVE: share of the variance that the reconstruction explains; L0: active latents per token.",
    )


def _recovered(result: Result) -> Table:
    rows = result.table("loss_recovered").to_pylist()
    lines = tuple((r["dataset"], r["model"], r["ce"], r["ce_spliced"], r["ce_mean"], r["recovered"]) for r in rows)
    columns = ("dataset", "model", "loss", "with reconstructions", "with the mean", "recovered")
    return Table(
        columns, lines, "Loss in nats per token when activations are replaced; recovered: of what the mean loses."
    )


def latents(result: Result) -> list[Block]:
    """The most telling latents, and the most telling examples of them."""
    blocks: list[Block] = [Heading("What the latents are")]
    if any(not dead for dead in result.table("latents")["is_dead"].to_pylist()):
        blocks.append(scatter(result))
        if is_pair(result):
            blocks += [_tag_table(result), Figure("norms", *_FIGURES["norms"])]
    blocks.append(latent_table(result, _SHOWN_LATENTS))
    if any(not dead for dead in result.table("latents")["is_dead"].to_pylist()):
        blocks.append(Figure("frequency", *_FIGURES["frequency"]))
    return [*blocks, *_examples(result)]


def scatter(result: Result) -> Figure:
    """All live latents as points."""
    return Figure("latents", *(_FIGURES["latents"] if is_pair(result) else _ENERGIES))


def _tag_table(result: Result) -> Table:
    rows = result.table("latents").to_pylist()
    lines = []
    for tag in ("ft_only", "stronger_in_ft", "shared", "stronger_in_base", "base_only", "dead"):
        mine = [r for r in rows if r["tag"] == tag]
        back = [r["comes_back"] for r in mine if r["comes_back"] is not None]
        verdicts = [r["verdict"] for r in mine if r["verdict"]]
        said = ", ".join(f"{verdicts.count(v)} {v}" for v in ("specific", "shrunk", "decoupled") if v in verdicts)
        lines.append(
            (
                tag,
                len(mine),
                sum(r["energy_share"] for r in mine),
                said or None,
                sum(back) / len(back) if back else None,
            )
        )
    columns = ("tag", "latents", "share of the energy", "by latent scaling", "come back with another seed")
    return Table(columns, tuple(lines), "Latents by relative decoder norm.")


def latent_table(result: Result, n: int) -> Table:
    """The n most telling live latents."""
    return latent_rows_table(result, [r for r in result.table("latents").slice(0, n).to_pylist() if not r["is_dead"]])


def latent_rows_table(result: Result, rows: list[dict[str, Any]]) -> Table:
    """Some latents, side by side."""
    if is_pair(result):
        columns = (
            "latent",
            "tag",
            "verdict",
            "relative norm",
            "ν errors",
            "ν reconstr.",
            "frequency",
            "energy",
            "back",
            "promotes",
        )
        lines = tuple(
            (
                str(r["latent"]), r["tag"], r["verdict"], r["relative_norm"], r["nu_error"], r["nu_reconstruction"],
                r["frequency"], r["energy_share"], _back(r), r["promoted"],
            )
            for r in rows
        )  # fmt: skip
        return Table(columns, lines, "The most telling latents: unequal norms first, weighted by their energy.")
    columns = ("latent", "energy", "frequency", "largest", "ν activations", "back", "promotes", "suppresses")
    lines = tuple(
        (
            str(r["latent"]), r["energy_share"], r["frequency"], r["maximum_raw"], r["nu_activation"], _back(r),
            r["promoted"], r["suppressed"],
        )
        for r in rows
    )  # fmt: skip
    return Table(columns, lines, "The latents that carry most of the difference; largest: in the stream's own units.")


def _back(row: dict[str, Any]) -> str | None:
    return None if row["comes_back"] is None else "yes" if row["comes_back"] else "no"


def _examples(result: Result) -> list[Block]:
    import pyarrow.compute as pc

    chosen = [r for r in result.table("latents").slice(0, _WITH_EXAMPLES).to_pylist() if not r["is_dead"]]
    table = result.table("examples").filter((pc.field("kind") == "top") & (pc.field("rank") < _EXAMPLES_EACH))
    rows = table.to_pylist()
    blocks: list[Block] = [Heading("Where they are active"), Paragraph("Choose a token to read its value.")]
    for latent in chosen:
        mine = [r for r in rows if r["unit"] == latent["latent"]]
        if mine:
            top = latent["maximum"]
            blocks.append(Heading(f"Latent {latent['latent']} ({latent['tag']})", 3))
            blocks.append(HeatmapList(tuple(window_heatmap(r, top, UNIT, example_title(r)) for r in mine), top, UNIT))
    return blocks if len(blocks) > 2 else []


def example_title(row: dict[str, Any]) -> str:
    """Which document, and how strongly."""
    return f"{row['dataset']}, document {row['sequence']}, {number(row['score'])}"


def causes(result: Result) -> list[Block]:
    """What the claimed latents do in the running models, beside random ones."""
    if not result.table("causal").num_rows:
        return []
    return [
        Heading("What the latents cause"),
        Paragraph(
            "The claimed latents are the most telling ones that the finetuned model has more of; each random set holds "
            "as many others, alike in energy, and what it adds is scaled to the same mean length."
        ),
        Figure("causal", *_FIGURES["causal"]),
        *_causal_tables(result),
        *_text_blocks(result),
    ]


def _text_blocks(result: Result) -> list[Block]:
    """What the models write with the latents held down or up."""
    rows = result.table("causal_text_means").to_pylist()
    if not rows:
        return []
    lines = []
    for claimed in (r for r in rows if r["latents"] == "claimed"):
        random = [r for r in rows if (r["change"], r["latents"]) == (claimed["change"], "random")]
        effects = sorted(r["change_of_score"] for r in random)
        shared = sum(r["shared_tokens"] for r in random) / max(1, len(random))
        interval = _interval({"effect": claimed["change_of_score"], **claimed})
        lines.append(
            (
                _HELD[claimed["change"]], claimed["n_texts"], interval,
                f"{effects[0]:.2g} … {effects[-1]:.2g}" if effects else None, claimed["shared_tokens"], shared,
            )
        )  # fmt: skip
    columns = ("texts of", "texts", "change of log p − log q [95 %]", "random", "tokens unchanged", "random, mean")
    caption = (
        "Texts written with the mean of the claimed latents' contributions taken from, or added to, every position, "
        "beside random latents of the same length: log p − log q under the unchanged models, nats per token; and how "
        "many tokens pass before the text differs from the unchanged one."
    )
    return [
        Heading("What they make the models write", 3),
        Table(columns, tuple(lines), caption),
        *_side_by_side(result),
    ]


def _side_by_side(result: Result) -> list[Block]:
    """The texts that the claimed latents moved most, beside the unchanged and one with random latents."""
    rows = result.table("causal_texts").to_pylist()
    by_key = {(r["change"], r["dataset"], r["document"], r["latents"], r["number"]): r for r in rows}
    claimed = [r for r in rows if r["latents"] == "claimed" and r["change_of_score"] is not None]
    lines = []
    for row in sorted(claimed, key=lambda r: -abs(r["change_of_score"]))[:_SHOWN_TEXTS]:
        key = (row["change"], row["dataset"], row["document"])
        beside = by_key.get((*key, "random", 0))
        lines.append(
            (
                _HELD[row["change"]], row["prompt"], by_key[*key, "unchanged", 0]["text"], row["text"],
                beside["text"] if beside else None,
            )
        )  # fmt: skip
    columns = ("texts of", "opening", "unchanged", "with the claimed latents", "with random ones")
    return [Table(columns, tuple(lines), "The texts that the claimed latents moved most.")]


def _causal_tables(result: Result) -> list[Table]:
    rows = result.table("causal").to_pylist()
    if not rows:
        return []
    lines = []
    for claimed in (r for r in rows if r["latents"] == "claimed"):
        key = (claimed["dataset"], claimed["change"], "random")
        random = [r for r in rows if (r["dataset"], r["change"], r["latents"]) == key]
        effects = sorted(r["effect"] for r in random)
        lines.append(
            (
                claimed["dataset"], "taken out" if claimed["change"] == "ablate" else "put into base",
                claimed["n_latents"], claimed["size"], sum(r["size"] for r in random) / len(random), claimed["kl"],
                sum(r["kl"] for r in random) / len(random), max(r["kl"] for r in random),
                _interval(claimed), f"{effects[0]:.2g} … {effects[-1]:.2g}",
            )
        )  # fmt: skip
    columns = (
        "dataset", "change", "latents", "size", "size random", "KL", "KL random, mean", "KL random, largest",
        "change of loss [95 %]", "random",
    )  # fmt: skip
    return [Table(columns, tuple(lines), "Claimed latents beside random ones of equal size; nats per token.")]


def _interval(row: dict[str, Any]) -> str:
    bounds = "" if row["low"] is None else f" [{row['low']:.2g}, {row['high']:.2g}]"
    return f"{row['effect']:.2g}{bounds}"


def training(result: Result) -> list[Block]:
    """The curves of the training."""
    if not result.table("training").num_rows:
        return []
    return [Heading("Training"), Figure("training", *_FIGURES["training"])]
