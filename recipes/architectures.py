"""Try site finding, capture and early exit on every causal language model family that transformers can build offline.

`python recipes/architectures.py` writes the tables of docs/architectures.md; tests/models/test_families.py runs the
same checks and compares.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.analysis.divergences import divergences, log_probs
from diffing.core.errors import UserError, one_line
from diffing.core.layers import Site, Slot
from diffing.models.adapters import attach
from diffing.models.block_sites import site_module
from diffing.models.capture import capture
from diffing.models.families import FAMILIES, tiny_family
from diffing.models.handle import ModelHandle, make_handle
from diffing.models.merging import Toggle
from diffing.models.quiet import quiet_transformers
from diffing.models.sites import first_tensor
from diffing.models.tiny import save_adapter, tiny_tokenizer

HEADINGS = (
    "family", "blocks", "final norm", "read-out", "residual", "early exit", "same is 0", "LoRA",
    "attention", "mlp", "sums up", "padding", "notes",
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
YES, NO = "✓", "–"
IDS_BT = torch.arange(3, 23).view(2, 10)


@dataclass(frozen=True)
class Row:
    """What the checks of one family gave: ✓, – or a few words; one field for each column."""

    family: str
    blocks: str
    final_norm: str
    read_out: str
    residual: str
    early_exit: str
    same_is_0: str
    lora: str
    attention: str
    mlp: str
    sums_up: str
    padding: str
    notes: tuple[str, ...] = field(default=())

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        values = [getattr(self, f.name) for f in fields(self) if f.name != "notes"]
        return [*values, "; ".join(self.notes)]

    @property
    def passes(self) -> bool:
        """Whether everything holds that every family must do; sites inside a block need not exist."""
        must = (self.read_out, self.residual, self.early_exit, self.same_is_0, self.lora, self.padding)
        return all(value.startswith(YES) for value in must)


def check_family(family: str) -> Row:
    """Build the tiny model and run all checks; whatever it cannot do at all is raised as it comes."""
    model = tiny_family(family)
    handle = make_handle(model, tiny_tokenizer(), family)
    layers = handle.sites.layers
    slots = [Slot(i) for i in range(len(layers))]
    states = capture(handle, IDS_BT, slots)
    notes: list[str] = []
    width, head_width = states[slots[-1]].shape[-1], handle.final_hidden(IDS_BT).shape[-1]
    if width != head_width:
        notes.append(f"residual stream {width} wide, the head's input {head_width}")
    attention, mlp = inner_site(handle, "attention"), inner_site(handle, "mlp")
    return Row(
        family=family,
        blocks=", ".join(sorted({type(block).__name__ for block in layers})),
        final_norm=type(handle.sites.final_norm).__name__ if handle.sites.final_norm else NO,
        read_out=YES if handle.transform else "own forward",
        residual=residual(handle, states, notes),
        early_exit=early_exit(handle, states),
        same_is_0=same_is_zero(handle),
        attention=attention,
        mlp=mlp,
        sums_up=sums_up(handle, states) if YES in attention and YES in mlp else NO,
        padding=padding(handle, states),
        lora=lora(family, handle, states, notes),
        notes=tuple(notes),
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value; infinite where shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()


def residual(handle: ModelHandle, states: dict[Slot, Tensor], notes: list[str]) -> str:
    """Captured states against the model's own hidden states, or against a hook set here where these are others."""
    with torch.no_grad(), quiet_transformers():
        out = handle.module(input_ids=IDS_BT, use_cache=False, output_hidden_states=True)
    theirs: list[Tensor] = list(getattr(out, "hidden_states", None) or [])
    norm = handle.sites.final_norm
    ours = list(states.values())
    is_inner_same = len(theirs) == len(ours) + 1 and all(map(torch.equal, ours[:-1], theirs[1:-1]))
    with torch.no_grad():
        last = norm(ours[-1]) if norm else ours[-1]
    if is_inner_same and relative(last, theirs[-1]) < 1e-5:
        return YES
    notes.append(_why_hooks(ours, theirs, is_inner_same))
    return f"{YES} hooks" if all(map(torch.equal, ours, by_hooks(handle))) else "differs"


def _why_hooks(ours: list[Tensor], theirs: list[Tensor], is_inner_same: bool) -> str:
    if is_inner_same:
        return "`output_hidden_states` agrees but for the last block, behind which more than one module follows"
    if all(any(torch.equal(a, b) for b in theirs) for a in ours[:-1]):
        return "`output_hidden_states` has the same states without the embedding in front"
    return "`output_hidden_states` gives other tensors than the blocks do"


def by_hooks(handle: ModelHandle) -> list[Tensor]:
    """What each block gives in a whole forward pass, read apart from `capture`."""
    seen: dict[int, Tensor] = {}

    def keep(module: nn.Module, args: object, output: object) -> None:
        tensor = first_tensor(output)
        assert tensor is not None
        seen.setdefault(id(module), tensor.clone())

    with ExitStack() as stack, torch.no_grad():
        for block in handle.sites.layers:
            stack.callback(block.register_forward_hook(keep).remove)
        handle.module(input_ids=IDS_BT, use_cache=False)
    return [seen[id(block)] for block in handle.sites.layers]


def early_exit(handle: ModelHandle, states: dict[Slot, Tensor]) -> str:
    """A middle layer alone: no later block and no head runs, and the bits are those of all layers together."""
    middle = (len(states) - 1) // 2
    ran: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda module, args: ran.append(what)

    with ExitStack() as stack:
        later = list(handle.sites.layers[middle + 1 :])
        for module, what in [*((block, "later block") for block in later), (handle.sites.head, "head")]:
            stack.callback(module.register_forward_pre_hook(note(what)).remove)
        alone = capture(handle, IDS_BT, [Slot(middle)])
    if ran:
        return f"runs {ran[0]}"
    return YES if torch.equal(alone[Slot(middle)], states[Slot(middle)]) else "other bits"


def same_is_zero(handle: ModelHandle) -> str:
    """KL of the model against itself, from two separate passes."""
    logits = [_logits(handle) for _ in range(2)]
    pair = log_probs(logits[0], logits[1])
    kl_N = divergences(pair.finetuned_NV, pair.base_NV)[0].kl_N
    return YES if torch.count_nonzero(kl_N) == 0 else f"KL {kl_N.max().item():.1e}"


def _logits(handle: ModelHandle) -> Tensor:
    if handle.transform is None:
        return handle.forward_logits(IDS_BT).flatten(0, -2)
    return handle.logits(handle.final_hidden(IDS_BT).flatten(0, -2))


def lora(family: str, handle: ModelHandle, states: dict[Slot, Tensor], notes: list[str]) -> str:
    """A LoRA on all linear layers: off gives the base's bits, on moves the last state."""
    module: PreTrainedModel = handle.module
    slots = list(states)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_adapter(Path(folder), module)
            toggle = Toggle(attach(module, Path(folder), family))
            off, on = (
                capture(replace(handle, toggle=toggle, adapter_on=side), IDS_BT, slots) for side in (False, True)
            )
        except (UserError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            notes.append(f"LoRA: {_brief(error)}")
            return NO
    if not all(torch.equal(off[slot], states[slot]) for slot in slots):
        return "off differs"
    return YES if not torch.equal(on[slots[-1]], states[slots[-1]]) else "on changes nothing"


def _brief(error: BaseException) -> str:
    return one_line(error, 120).replace("|", "/")


def inner_site(handle: ModelHandle, site: Site) -> str:
    """In how many blocks there is one such module with one vector per token."""
    layers = handle.sites.layers
    found = []
    for i in range(len(layers)):
        try:
            site_module(layers, Slot(i, site))
        except UserError:
            continue
        found.append(Slot(i, site))
    if not found:
        return NO
    try:
        given = capture(handle, IDS_BT, found)
    except UserError as error:
        return f"{NO} {_brief(error)}"
    if any(t.shape[:-1] != IDS_BT.shape for t in given.values()):
        return "shape"
    return YES if len(found) == len(layers) else f"{YES} {len(found)} of {len(layers)}"


def sums_up(handle: ModelHandle, states: dict[Slot, Tensor]) -> str:
    """Whether a block adds what its attention and its MLP give, and nothing else, in every block that has both."""
    n_tried = 0
    for i in range(1, len(states)):
        slots = [Slot(i, "attention"), Slot(i, "mlp")]
        try:
            parts = capture(handle, IDS_BT, slots)
        except UserError:
            continue
        n_tried += 1
        moved = states[Slot(i)] - states[Slot(i - 1)]
        if relative(parts[slots[0]] + parts[slots[1]], moved) > 1e-3:
            return NO
    return YES if n_tried else NO


def padding(handle: ModelHandle, states: dict[Slot, Tensor]) -> str:
    """States of real tokens, with padding on the right and lengths given, against those without padding."""
    padded = torch.cat([IDS_BT, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    padded[1, 6:] = 0
    lengths = (10, 6)
    ours = capture(handle, padded, list(states), lengths)
    short = capture(handle, IDS_BT[1:, :6], list(states))
    for slot, whole in states.items():
        if relative(ours[slot][0, :10], whole[0]) > 1e-4 or relative(ours[slot][1, :6], short[slot][0]) > 1e-4:
            return "moves"
    return f"{YES} mask" if handle.needs_mask else YES


# Families without a row: why, in words; and for each the start or a part of what is raised.
UNAVAILABLE: dict[str, dict[str, str]] = {
    "refused: its blocks do not give one vector per token (several streams, or tokens in another order or number)": {
        "cpmant": "(2, 40, 32) where its head is given (2, 8, 32)",
        "deepseek_v4": "The decoder layers of model class DeepseekV4ForCausalLM give",
        "gemma3n_text": "The decoder layers of model class Gemma3nForCausalLM give (4",
        "hy_v4": "not one vector per token",
        "prophetnet": "The decoder layers of model class ProphetNetForCausalLM give",
        "xlnet": "not one vector per token",
    },
    "refused: no list of blocks of which each runs once on what the one before gave": {
        "hrm_text": "No list of",
        "xlm": "No list of",
    },
    "refused: no output head": {
        "blip": "no output head",
        "pi0": "no output head",
    },
    "text alone is not enough; the model asks for an image or another input": {
        "blip-2": "'pixel_values'",
        "idefics": "pixel_values",
        "instructblip": "'pixel_values'",
        "instructblipvideo": "'pixel_values'",
        "kosmos-2": "pixel_values",
        "pix2struct": "flattened_patches",
        "t5gemma2": "input_ids or inputs_embeds",
        "udop": "Bbox is required",
        "vision-encoder-decoder": "pixel_values",
    },
    "needs a package that is not installed here (timm)": {
        "gemma3n": "requires the timm",
        "fast_vlm": "requires the timm",
        "perception_lm": "requires the timm",
    },
    "transformers does not build it from the settings of this family": {
        "dbrx": "'DbrxAttentionConfig' object has no attribute 'rope_theta'",
        "musicgen": "'MusicgenConfig' object has no attribute 'dropout'",
        "musicgen_melody": "'MusicgenMelodyConfig' object has no attribute 'dropout'",
        "evolla": "Unrecognized configuration class <class 'transformers.models",
        "chameleon": "'NoneType' object has no attribute 'get'",
    },
    "not tried: shrinking its settings by name leaves a model that is too large": {
        "blt": "parameters with its known settings shrunk",
        "dots3_note_text": "parameters with its known settings shrunk",
        "phi4_multimodal": "parameters with its known settings shrunk",
        "roc_bert": "parameters with its known settings shrunk",
        "cohere2_vision": "parameters with its known settings shrunk",
        "deepseek_vl_hybrid": "parameters with its known settings shrunk",
        "florence2": "parameters with its known settings shrunk",
        "janus": "parameters with its known settings shrunk",
        "muse_glimmer": "parameters with its known settings shrunk",
        "pp_formulanet": "parameters with its known settings shrunk",
        "qwen3_omni_moe_thinker": "parameters with its known settings shrunk",
        "unlimited_ocr": "parameters with its known settings shrunk",
        "inkling_mm_model": "parameters with its known settings shrunk",
    },
    "not tried: shrunk by name, its settings do not fit together": {
        "cohere_compass_text": "_attention'",
        "dots3_note": "adapter_in_dim must match hidden_size",
        "gemma4_assistant": "hidden_size_per_layer_input must be 0, got 256",
        "gemma4_unified_assistant": "The set of layer types producing a cache is different than t",
        "cohere_compass": "_attention'",
        "deepseek_ocr2": "'NoneType' object is not subscriptable",
        "diffusion_gemma": "empty(): argument 'size' (position 1) must be tuple of ints,",
        "ernie4_5_vl_moe": "The expanded size of the tensor (4) must match the existing",
        "glm5_next": "Expecting NoPE for the DSA attention layers, but got 8 as Ro",
        "granite4_vision": "object of type 'NoneType' has no len()",
        "hunyuan_vl": "object of type 'NoneType' has no len()",
        "inkling2": "`vision_config.text_hidden_size` (4608) must match `text_con",
        "mistral4": "The size of tensor a (4) must match the size of tensor b (2)",
        "molmo2": "`adapter_config.vision_feature_layer` [24, 18] must index th",
        "muse_spark": "`patch_sizes`, `hidden_sizes` and `depths` must have one ent",
        "nemotron_h_omni": "`vision_config.video_temporal_patch_size` (None) and `video_",
        "step3p7": "Could not find a `sliding_window` argument in the config, or",
    },
}


def reason_of(family: str) -> str | None:
    """Why a family has no row; None where it has one."""
    return next((reason for reason, families in UNAVAILABLE.items() if family in families), None)


def refusal(family: str) -> str:
    """What is raised when the checks of a family without a row are tried: class and message in one line.

    Raises:
        AssertionError: Nothing is raised: it works now and belongs into the table.
    """
    try:
        check_family(family)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error, 400)}"
    raise AssertionError(f"{family} works now; take it out of UNAVAILABLE and run recipes/architectures.py")


def versions() -> str:
    """What the page was made with."""
    return f"transformers {transformers.__version__}, peft {peft.__version__}"


def table_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def tables(rows: list[Row]) -> dict[str, str]:
    """The generated parts of the page, by name."""
    head = [table_row(list(HEADINGS)), table_row(["---"] * len(HEADINGS))]
    absent = [table_row(["why", "families"]), table_row(["---", "---"])]
    absent += [table_row([reason, ", ".join(families)]) for reason, families in UNAVAILABLE.items()]
    n_absent = sum(map(len, UNAVAILABLE.values()))
    counts = (
        f"With {versions()}: of {len(FAMILIES)} families, {len(rows)} are built and read, "
        f"{sum(r.passes for r in rows)} pass every check that is required, and {n_absent} have no row."
    )
    return {
        "counts": counts,
        "families": "\n".join([*head, *(table_row(row.cells) for row in rows)]),
        "unavailable": "\n".join(absent),
    }


def fill(page: str, parts: dict[str, str]) -> str:
    """Put the generated parts between their markers."""
    for name, text in parts.items():
        before, rest = page.split(BEGIN.format(name))
        page = f"{before}{BEGIN.format(name)}\n{text}\n{END.format(name)}{rest.split(END.format(name))[1]}"
    return page


def main() -> None:
    rows = [check_family(family) for family in FAMILIES if reason_of(family) is None]
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), tables(rows)), encoding="utf-8")
    print(tables(rows)["counts"])


if __name__ == "__main__":
    main()
