"""Seconds and memory of `weight_spectrum` on weights of large models, random ones made here; no base is needed.

    python benchmarks/weight_spectrum.py            # a rank-16 adapter of an 8B model; matrix pairs of a 70B one
    python benchmarks/weight_spectrum.py --parts adapter

Each part runs in a process of its own, whose peak is that of resident pages since imports (Linux).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffing.analysis.context import RunContext
from diffing.core.specs import ModelSpec, PairSpec, VariantSpec
from diffing.core.templates import TemplateRules
from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.run import run
from diffing.models.plan import PairPlan
from diffing.models.sources import ResolvedSource
from diffing.models.tiny import tiny_tokenizer

RANK = 16
# Llama 3.1 8B: width, MLP, keys and values, layers. Llama 3.1 70B: the largest matrix, and the embedding.
WIDTH, INNER, KEYS, LAYERS = 4096, 14336, 1024, 32
MATRICES = {"matrix": ("model.layers.0.mlp.gate_proj.weight", (28672, 8192)),
            "embedding": ("model.embed_tokens.weight", (128256, 8192))}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip


def write_config(folder: Path, width: int, n_layers: int) -> None:
    """A base of which only the configuration is there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 32, "vocab_size": 128256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_adapter(folder: Path, n_layers: int = LAYERS) -> None:
    """`folder/base` without weights, and `folder/finetuned`: a LoRA on every linear layer, float32."""
    write_config(folder / "base", WIDTH, n_layers)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(n_layers):
        for module, (n_out, n_in) in SHAPES.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, n_in, generator=generator) * 0.02
            weights[f"{name}.lora_B.weight"] = torch.randn(n_out, RANK, generator=generator) * 0.02
    (folder / "finetuned").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "finetuned" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear", "bias": "none"}
    (folder / "finetuned" / "adapter_config.json").write_text(json.dumps(settings))


def write_matrix(folder: Path, name: str, shape: tuple[int, int]) -> None:
    """`folder/base` and `folder/finetuned` with one bfloat16 matrix each."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
    left, right = torch.randn(shape[0], 4, generator=generator), torch.randn(4, shape[1], generator=generator)
    for side in ("base", "finetuned"):
        write_config(folder / side, shape[1], 1)
        save_file({name: base}, folder / side / "model.safetensors")
        if side == "base":
            for rows, start in ((base[i : i + 4096], i) for i in range(0, shape[0], 4096)):
                rows.add_((left[start : start + len(rows)] @ right).mul_(5e-4).bfloat16())


def planned(folder: Path, kind: str) -> PairPlan:
    """The plan of such a pair; the base may lack weights, which a plan made from options refuses."""
    base, finetuned = (
        ResolvedSource(folder / side, side, None, None, "", "local") for side in ("base", "finetuned")
    )  # fmt: skip
    spec = PairSpec(
        model=ModelSpec(name="large", id="base"), finetuned=VariantSpec(id="finetuned"), organism="random"
    )  # fmt: skip
    tokenizer, rules = tiny_tokenizer(), TemplateRules(None, None, False)
    n_layers = json.loads((folder / "base" / "config.json").read_text())["num_hidden_layers"]
    return PairPlan(
        base, finetuned, kind, "adapter", ("float32", "float32"), tokenizer, tokenizer, rules, "", "", (), n_layers,
        spec,
    )  # fmt: skip


def measured(folder: Path, kind: str) -> tuple[float, int]:
    """Seconds of a run without read-out, and the number of weights."""
    plan = planned(folder, kind)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)

    def refused():
        raise AssertionError("a model was loaded")

    context = RunContext(
        load_pair=refused, tokenizer=plan.tokenizer, corpus=None, seed=0, skip_first_tokens=1, batch_tokens=2048,
        skip_template_tokens=False, null_pair="none", scratch=scratch, log=lambda values: None, load_plan=lambda: plan,
    )  # fmt: skip
    start = time.perf_counter()
    output = run(WeightSpectrumConfig(n_readout=0), context)
    return time.perf_counter() - start, output.tables["weights"].num_rows


def work(part: str, folder: Path) -> None:
    from measuring import Memory

    memory = Memory()
    seconds, n = measured(folder, "adapter" if part == "adapter" else "model")
    added = memory.peak() - memory.loaded
    print(
        f"{part}: {n} weights in {seconds:.1f} s, peak {memory.peak() / 2**20:,.0f} MiB "
        f"({added / 2**20:,.0f} above imports), {torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["adapter", *MATRICES], choices=["adapter", *MATRICES])
    parser.add_argument("--folder", type=Path, help="for the weights, up to 4.2 GB at a time; default: temporary files")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.folder)
        return
    for part in args.parts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            if part == "adapter":
                write_adapter(Path(folder))
            else:
                write_matrix(Path(folder), *MATRICES[part])
            subprocess.run([sys.executable, __file__, "--work", part, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
