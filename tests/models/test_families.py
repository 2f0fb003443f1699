"""Every family that transformers builds offline, against the committed page; what has no row, against its exception."""

import sys

import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.models.capture import capture
from diffing.models.families import FAMILIES, tiny_family
from diffing.models.handle import make_handle
from diffing.models.sites import find_sites
from diffing.models.tiny import tiny_tokenizer
from workbench import ROOT

sys.path.insert(0, str(ROOT / "recipes"))
import architectures

PAGE = architectures.PAGE.read_text(encoding="utf-8")
IS_SAME_VERSION = architectures.versions() in PAGE
FAST = ("llama", "gpt2", "gemma3_text", "mixtral", "opt", "mamba")
UNAVAILABLE = {f: part for families in architectures.UNAVAILABLE.values() for f, part in families.items()}
BUILT = [f for f in FAMILIES if f not in UNAVAILABLE]
other_version = pytest.mark.skipif(not IS_SAME_VERSION, reason="docs/architectures.md was made with other versions")


def committed():
    """The page's rows, by family."""
    part = PAGE.split("<!-- families -->")[1].split("<!-- end of families -->")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {
        cells[0]: line for cells, line in zip(rows, [x for x in part.splitlines() if x.startswith("| ")], strict=True)
    }


@pytest.mark.parametrize("family", FAST)
def test_well_known_families_hold(family):
    row = architectures.check_family(family)
    assert row.passes or (family == "mamba" and row.lora == "–")
    assert (row.attention, row.mlp) == {"mamba": ("✓", "–"), "opt": ("✓", "–")}.get(family, ("✓", "✓"))
    assert (row.sums_up == "✓") == (family in ("llama", "gpt2", "mixtral"))
    assert IS_SAME_VERSION is False or architectures.table_row(row.cells) == committed()[family]


@pytest.mark.slow
@other_version
@pytest.mark.parametrize("family", [f for f in BUILT if f not in FAST])
def test_the_page_has_the_row_that_comes_out(family):
    assert architectures.table_row(architectures.check_family(family).cells) == committed()[family]


@pytest.mark.slow
@other_version
@pytest.mark.parametrize("family", UNAVAILABLE)
def test_what_has_no_row_fails_as_said(family):
    assert UNAVAILABLE[family] in architectures.refusal(family)


@other_version
def test_the_page_is_whole_and_says_what_passes():
    rows = committed()
    rows.pop("family")
    rows.pop("---", None)
    assert set(rows) | set(UNAVAILABLE) == set(FAMILIES)
    assert not set(rows) & set(UNAVAILABLE)
    must = [
        architectures.HEADINGS.index(h) for h in ("read-out", "residual", "early exit", "same is 0", "LoRA", "padding")
    ]
    passing = [f for f, line in rows.items() if all(line.strip("| ").split(" | ")[i].startswith("✓") for i in must)]
    assert len(passing) >= 60
    assert f"{len(rows)} are built and read, {len(passing)} pass" in PAGE
    assert all(f"| {reason} | {', '.join(fs)} |" in PAGE for reason, fs in architectures.UNAVAILABLE.items())


def test_several_streams_are_refused_with_their_shape():
    model = tiny_family("gemma3n_text")
    with pytest.raises(UserError, match=r"give \(4, 2, 8, 32\) where its head is given \(2, 8, 32\)"):
        make_handle(model, tiny_tokenizer(), "gemma3n")


def test_lists_of_sublayers_are_no_blocks():
    with pytest.raises(UserError, match="No list of 3 decoder layers"):
        make_handle(tiny_family("xlm"), tiny_tokenizer(), "xlm")


def test_a_stream_that_is_scaled_between_some_blocks_is_followed():
    config = RwkvConfig(
        vocab_size=270, hidden_size=32, attention_hidden_size=32, intermediate_size=48, num_hidden_layers=8,
        rescale_every=3,
    )  # fmt: skip
    handle = make_handle(RwkvForCausalLM(config).eval(), tiny_tokenizer(), "rwkv")
    assert len(handle.sites.layers) == 8


def test_decoder_of_an_encoder_decoder_family_is_counted_by_its_own_layers():
    model = tiny_family("bart")
    assert model.config.num_hidden_layers == 2
    assert len(find_sites(model, torch.arange(20).view(2, 10)).layers) == 3


def test_nested_text_model_is_found_beside_a_vision_tower():
    model = tiny_family("llava")
    handle = make_handle(model, tiny_tokenizer(), "llava")
    assert handle.sites.layers is model.model.language_model.layers
    assert handle.sites.final_norm is model.model.language_model.norm


def test_mixed_blocks_offer_what_each_has():
    handle = make_handle(tiny_family("jamba"), tiny_tokenizer(), "jamba")
    slots = [Slot(i, "attention") for i in range(len(handle.sites.layers))]
    given = capture(handle, torch.arange(20).view(2, 10), slots)
    assert {tuple(t.shape) for t in given.values()} == {(2, 10, 32)}


def test_a_family_is_the_same_for_a_seed_and_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    a, b, c = tiny_family("qwen3", 0), tiny_family("qwen3", 0), tiny_family("qwen3", 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert not all(map(torch.equal, a.parameters(), c.parameters()))
