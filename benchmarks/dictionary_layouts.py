"""Dictionaries that diffing writes, opened by the libraries whose layouts they have; and the golden files of the tests.

    python benchmarks/dictionary_layouts.py             # ours, written, opened by sae_lens and sparsify
    python benchmarks/dictionary_layouts.py --golden    # tests/dictionaries/golden made anew by the libraries

The libraries live in an environment of their own, below --envs, which is made when it is not there; this file runs in
both: `--inside` is what the environment's Python is called with.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "dictionaries" / "golden"
LIBRARIES = ("sae-lens==6.54.12", "einops", "natsort", "schedulefree")
# Without what they ask for: dictionary-learning wants an old nnsight for a buffer that is not used here.
ALONE = ("dictionary-learning==0.1.0", "eai-sparsify==1.3.3")
WIDTH, LATENTS, ROWS, K = 12, 48, 8, 5


@dataclass(frozen=True)
class Case:
    """A dictionary of a library, what it is shown, and what it makes of that."""

    name: str
    save: Callable[[Path], object]
    latents_NF: torch.Tensor
    reconstruction_ND: torch.Tensor


def inputs() -> torch.Tensor:
    """Activations with a mean that is not 0."""
    return 2 * torch.randn(ROWS, WIDTH) + torch.linspace(-3, 3, WIDTH)


@torch.no_grad()
def randomise(module: Any, unit: str = "") -> None:
    """Weights of any length and biases of any sign; `unit` names a decoder [F, d] or [d, F] whose rows get length 1."""
    for name, p in module.named_parameters():
        if "threshold" in name:
            p.copy_(torch.linspace(0, 2, p.numel()))
        elif p.dim() == 1:
            p.copy_(0.3 * torch.randn_like(p))
        else:
            length_F = torch.linspace(0.5, 2, LATENTS)
            p.copy_(torch.randn_like(p) / WIDTH**0.5)
            p.mul_(length_F if p.shape[1] == LATENTS else length_F[:, None])
        if name == unit:
            p.div_(p.norm(dim=0 if p.shape[1] == LATENTS else 1, keepdim=True))


def saelens_cases(x_ND: torch.Tensor) -> Iterator[Case]:
    import sae_lens
    from sae_lens import saes

    shape = {"d_in": WIDTH, "d_sae": LATENTS}
    makers: dict[str, Callable[[], Any]] = {
        "standard": lambda: saes.StandardSAE(saes.StandardSAEConfig(**shape)),
        "jumprelu": lambda: saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**shape, apply_b_dec_to_input=False)),
        "gated": lambda: saes.GatedSAE(saes.GatedSAEConfig(**shape)),
        "topk": lambda: saes.TopKSAE(saes.TopKSAEConfig(**shape, k=K, rescale_acts_by_decoder_norm=True)),
        "topk_unit": lambda: saes.TopKSAE(saes.TopKSAEConfig(**shape, k=K)),
    }
    for name, make in makers.items():
        sae = make()
        randomise(sae, "W_dec" if name == "topk_unit" else "")
        sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "gpt2-small", "blocks.7.hook_resid_post"
        yield Case(f"saelens_{name}", sae.save_model, sae.encode(x_ND), sae(x_ND))
    trained = saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(**shape, k=K))
    randomise(trained)
    trained.topk_threshold.fill_(0.8)
    with tempfile.TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        sae = sae_lens.SAE.load_from_disk(folder)
    yield Case("saelens_batchtopk", trained.save_inference_model, sae.encode(x_ND), sae(x_ND))


def dictionary_learning_cases(x_ND: torch.Tensor) -> Iterator[Case]:
    nnsight = types.ModuleType("nnsight")
    nnsight.LanguageModel = object  # type: ignore[attr-defined]
    sys.modules.setdefault("nnsight", nnsight)
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    made = (
        (dictionary.AutoEncoder(WIDTH, LATENTS), ""),
        (dictionary.AutoEncoderNew(WIDTH, LATENTS), ""),
        (dictionary.GatedAutoEncoder(WIDTH, LATENTS), ""),
        (dictionary.JumpReluAutoEncoder(WIDTH, LATENTS), ""),
        (top_k.AutoEncoderTopK(WIDTH, LATENTS, K), "decoder.weight"),
        (batch_top_k.BatchTopKSAE(WIDTH, LATENTS, K), ""),
        (matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(WIDTH, LATENTS, K, [8, LATENTS - 8]), ""),
    )
    for model, unit in made:
        randomise(model, unit)
        if hasattr(model, "k"):
            model.threshold.fill_(0.9)
        kind = type(model).__name__

        def save(folder: Path, model: Any = model, kind: str = kind) -> None:
            folder.mkdir(parents=True)
            torch.save(model.state_dict(), folder / "ae.pt")
            trainer = {
                "dict_class": kind,
                "activation_dim": WIDTH,
                "dict_size": LATENTS,
                "layer": 3,
                "lm_name": "pythia",
            }
            (folder / "config.json").write_text(json.dumps({"trainer": {**trainer, "k": K}, "buffer": {}}))

        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "saved")
            more = {"k": K} if "TopK" in kind else {}
            opened = type(model).from_pretrained(str(Path(folder) / "saved" / "ae.pt"), **more)
        yield Case(f"dictionary_learning_{kind}", save, opened.encode(x_ND), opened(x_ND))


def sparsify_cases(x_ND: torch.Tensor) -> Iterator[Case]:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K))
    randomise(coder, "W_dec")
    found = coder.encode(x_ND)
    latents_NF = torch.zeros(ROWS, LATENTS).scatter(1, found.top_indices, found.top_acts)
    yield Case("sparsify_layers.3", coder.save_to_disk, latents_NF, coder(x_ND).sae_out)


@torch.no_grad()
def write_golden(folder: Path) -> None:
    for cases in (saelens_cases, dictionary_learning_cases, sparsify_cases):
        torch.manual_seed(0)
        x_ND = inputs()
        for case in cases(x_ND):
            case.save(folder / case.name)
            expected = {"x": x_ND, "latents": case.latents_NF, "reconstruction": case.reconstruction_ND}
            save_file({k: v.contiguous() for k, v in expected.items()}, folder / case.name / "expected.safetensors")
            print(f"{case.name}: {float((case.latents_NF > 0).float().sum(1).mean()):.1f} active")


@torch.no_grad()
def reconstruct(folder: Path) -> None:
    """What the libraries make of `x.safetensors` with each dictionary in the folder."""
    import sae_lens
    from sparsify import SparseCoder

    x_ND = load_file(folder / "x.safetensors")["x"]
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        if path.name.startswith("saelens"):
            made_ND = sae_lens.SAE.load_from_disk(path)(x_ND)
        else:
            made_ND = SparseCoder.load_from_disk(path)(x_ND).sae_out
        save_file({"reconstruction": made_ND.contiguous()}, path / "library.safetensors")


def compare(python: str, width: int, n_latents: int, n_rows: int) -> None:
    """Write one dictionary of each kind, have its library open it, and print how far the reconstructions are apart."""
    from diffing.dictionaries.dictionary import Dictionary
    from diffing.dictionaries.layouts import Facts, write_layout
    from diffing.dictionaries.spec import DictionarySpec

    torch.manual_seed(1)
    x_ND = 20 * torch.randn(n_rows, width) + torch.linspace(-30, 30, width)
    kinds = ("topk", "batch_topk", "jumprelu", "l1")
    with tempfile.TemporaryDirectory() as held, torch.no_grad():
        folder, ours = Path(held), {}
        save_file({"x": x_ND}, folder / "x.safetensors")
        for kind in kinds:
            spec = DictionarySpec(n_sites=1, width=width, n_latents=n_latents, sparsity=kind, k=32)
            dictionary = Dictionary(spec, torch.tensor([0.037]))
            for p in dictionary.parameters():
                p.copy_(torch.randn_like(p) / (width**0.5 if p.dim() == 3 else 3))
            dictionary.threshold.fill_(1.5 if kind == "batch_topk" else 0)
            x_NMD = dictionary.normalised(x_ND[:, None])
            ours[kind] = dictionary.raw(dictionary.decode(dictionary.encode(x_NMD)))[:, 0]
            for layout in ("saelens", "sparsify") if kind == "topk" else ("saelens",):
                write_layout(folder / f"{layout}-{kind}", dictionary, layout, Facts())
        run_inside(python, "reconstruct", folder)
        for path in sorted(folder.glob("*/library.safetensors")):
            layout, _, kind = path.parent.name.partition("-")
            apart = (load_file(path)["reconstruction"] - ours[kind]).norm() / ours[kind].norm()
            print(f"{layout:9} {kind:11} relative difference of reconstructions {float(apart):.1e}")


def run_inside(python: str, what: str, folder: Path) -> None:
    """Run a part of this file with the libraries, which are to ask no hub."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [python, __file__, "--inside", what, "--folder", str(folder)]
    subprocess.run(command, env={**inherited, **offline}, check=True)


def environment(envs: Path) -> str:
    """The Python of the libraries' environment, made if it is not there."""
    python, mark = envs / "dictionaries" / "bin" / "python", envs / "dictionaries" / "installed"
    if not mark.exists():
        print(f"installing {' '.join((*LIBRARIES, *ALONE))} into {mark.parent} …", flush=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(mark.parent)], check=True)
        subprocess.run([*pip, f"torch=={torch.__version__.partition('+')[0]}"], check=True)
        subprocess.run([*pip, *LIBRARIES], check=True)
        subprocess.run([*pip, "--no-deps", *ALONE], check=True)
        mark.touch()
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "diffing-benchmarks")
    parser.add_argument("--golden", action="store_true", help="make the tests' golden files anew")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--inside", choices=("golden", "reconstruct"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=GOLDEN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        {"golden": write_golden, "reconstruct": reconstruct}[options.inside](options.folder)
        return
    python = environment(options.envs)
    if options.golden:
        run_inside(python, "golden", GOLDEN)
    else:
        compare(python, options.width, options.latents, options.rows)


if __name__ == "__main__":
    main()
