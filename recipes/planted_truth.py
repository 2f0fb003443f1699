"""Trains crosscoders on activations whose features are known, prints what they recover, and draws it for the docs.

    python recipes/planted_truth.py

Two million rows, 24 features of each of five kinds in 64 dimensions, each active at 2 % of the rows, a quarter of them
correlated with another; noise 0.02 per dimension.
"""

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from plotly.subplots import make_subplots

from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.scaling import Scaling, ScalingSums
from diffing.analysis.latents.tags import relative_norms, tag_names, verdict
from diffing.core.progress import bar
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.metrics import Quality, evaluate
from diffing.dictionaries.planted import KINDS, Planted, plant, recovery
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec, Sparsity
from diffing.dictionaries.trainer import Trainer, train
from diffing.display.colours import SERIES

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "planted_truth.png"
BATCH = 2048
FOUND = 0.9


def trained(planted: Planted, sparsity: Sparsity, n_rows: int) -> Dictionary:
    """A crosscoder of 256 latents after one pass."""
    spec = DictionarySpec(n_sites=2, width=64, n_latents=256, k=4, sparsity=sparsity)
    scale = measure_scale(planted.batches(20_000, BATCH, seed=99))
    n_steps = n_rows // BATCH
    trainer = Trainer(
        initial_dictionary(spec, scale, 0), TrainingSpec(n_steps=n_steps, penalty=0.2), scale.variance
    )  # fmt: skip
    with bar(f"training, {sparsity}", n_steps, "steps") as advance:
        train(trainer, planted.batches((n_steps + 1) * BATCH, BATCH, seed=1), lambda row: advance(1))
    return trainer.dictionary


def scaling(planted: Planted, dictionary: Dictionary) -> Scaling:
    """ν on other rows of the same features."""
    rows = list(planted.batches(100_000, BATCH, seed=7))
    sums = ScalingSums(dictionary, "pair", torch.cat(rows).mean(0))
    for raw_N2D in rows:
        x_NMD = dictionary.normalised(raw_N2D)
        codes = dictionary.encode(x_NMD)
        sums.add(CodedBlock(np.arange(len(raw_N2D)), raw_N2D, x_NMD, codes, dictionary.decode(codes).detach(), 0, 0))
    return sums.result()


def told(planted: Planted, dictionary: Dictionary, quality: Quality, nu: Scaling) -> dict[str, np.ndarray]:
    """For each feature: whether it was found, the relative norm and ν of its latent, and its tag and verdict."""
    alive_F = quality.frequency_F > 0
    match = recovery(planted, dictionary, torch.from_numpy(alive_F))
    relative_F = relative_norms(dictionary.norms_FM().detach().double().numpy())
    tags = np.array(tag_names(dictionary, "pair", alive_F))
    error_F, rebuilt_F = nu.nu("error"), nu.nu("reconstruction")
    verdicts = np.array(
        [str(verdict(t, e, r)) for t, e, r in zip(tags, error_F, rebuilt_F, strict=True)]
    )  # fmt: skip
    at = match.latent_G
    return {
        "found": match.cosine_G > FOUND, "relative": relative_F[at], "nu": error_F[at], "tag": tags[at],
        "verdict": verdicts[at],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows learned from")
    rows = parser.parse_args().rows
    planted = plant()
    results = {}
    for sparsity in ("batch_topk", "l1"):
        dictionary = trained(planted, sparsity, rows)
        quality = evaluate(dictionary, planted.batches(40_000, BATCH, seed=5))
        results[sparsity] = told(planted, dictionary, quality, scaling(planted, dictionary))
        _print(sparsity, planted, quality, results[sparsity])
    _draw(planted, results)


def _print(sparsity: str, planted: Planted, quality: Quality, found: dict[str, np.ndarray]) -> None:
    kinds = np.array(planted.kinds)
    ok, right = found["found"], found["tag"] == kinds
    print(f"{sparsity}: FVE {quality.fve_M.round(3)}, L0 {quality.l0:.2f}, explained difference "
          f"{quality.explained_difference:.3f}; found {ok.mean():.3f}, tags right {right[ok].mean():.3f}")  # fmt: skip
    for kind in KINDS:
        mine = kinds == kind
        line = f"  {kind:17s} found {ok[mine].mean():.2f}  tags {dict(Counter(found['tag'][mine & ok].tolist()))}"
        said = Counter(found["verdict"][mine & ok & (found["tag"] == "ft_only")].tolist())
        print(f"{line}  verdicts of ft_only {dict(said)}" if said else line)


def _draw(planted: Planted, results: dict[str, dict[str, np.ndarray]]) -> None:
    kinds = np.array(planted.kinds)
    names = {"batch_topk": "BatchTopK", "l1": "L1"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=[names[s] for s in results], shared_yaxes=True)
    for column, found in enumerate(results.values(), 1):
        for i, kind in enumerate(KINDS):
            mine = (kinds == kind) & found["found"]
            figure.add_scatter(
                x=found["relative"][mine], y=np.clip(np.nan_to_num(found["nu"][mine], nan=1.6), -0.2, 1.6),
                mode="markers", marker={"color": SERIES[i], "size": 8, "opacity": 0.75}, name=kind.replace("_", " "),
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
        figure.add_hline(y=0.2, line={"color": "#888888", "dash": "dot", "width": 1}, row=1, col=column)
        for x in (0.1, 0.4, 0.6, 0.9):
            figure.add_vline(x=x, line={"color": "#888888", "dash": "dot", "width": 1}, row=1, col=column)
        figure.update_xaxes(
            title_text="relative norm (0 finetuned only, 1 base only)", range=[-0.04, 1.04], row=1, col=column
        )
    figure.update_yaxes(title_text="ν of the errors (cut at 1.6)", row=1, col=1)
    figure.update_layout(
        width=1100, height=480, template="plotly_white", legend={"orientation": "h", "y": -0.2},
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        figure.write_html(page, include_plotlyjs=True, full_html=True, config={"displayModeBar": False})
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={PICTURE}",
            "--window-size=1120,500", "--virtual-time-budget=4000", f"--user-data-dir={folder}/profile", f"file://{page}",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(f"drew {PICTURE}")


if __name__ == "__main__":
    main()
