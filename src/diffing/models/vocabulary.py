"""Which token ids mean the same in both models."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.core.errors import UserError

LEAST_AGREEMENT = 0.9


@dataclass(frozen=True)
class Vocabulary:
    """The ids on which two vocabularies agree; distributions are cut to them and renormalised.

    Args:
        shared_ids: Ascending ids below both widths whose token strings agree; None: all do and the widths are equal.
        base_size: Width of the base's logits.
        finetuned_size: Width of the finetuned model's logits.
        n_agree: Number of ids that agree, rows without a token included.
        refusal: Why predictions of the two models cannot be compared token by token; None: they can.
    """

    shared_ids: Tensor | None
    base_size: int
    finetuned_size: int
    n_agree: int
    refusal: str | None = None


def compare(
    base: PreTrainedTokenizerBase,
    finetuned: PreTrainedTokenizerBase,
    base_width: int,
    finetuned_width: int,
    must_agree: bool = True,
) -> Vocabulary:
    """Compare two vocabularies id by id.

    Logits may be wider than the tokenizer: such padding rows agree where both models have them.

    Args:
        base: The base's tokenizer.
        finetuned: The finetuned model's, or the same object.
        base_width: Width of the base's logits.
        finetuned_width: Width of the finetuned model's logits.
        must_agree: Whether too little agreement is an error; else the vocabulary says so.

    Raises:
        UserError: Fewer than 90 % of the smaller vocabulary's tokens agree, and they must.
    """
    width = min(base_width, finetuned_width)
    refusal = None
    if finetuned is base:
        agreeing = list(range(width))
    else:
        ours, theirs = _strings(base), _strings(finetuned)
        agreeing = [i for i in range(width) if ours.get(i) == theirs.get(i)]
        refusal = _refusal(base, finetuned, ours, theirs, sum(i in ours for i in agreeing))
    if refusal and must_agree:
        raise UserError(refusal)
    all_agree = base_width == finetuned_width == len(agreeing)
    shared_ids = None if all_agree else torch.tensor(agreeing)
    return Vocabulary(shared_ids, base_width, finetuned_width, len(agreeing), refusal)


def _strings(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def _refusal(
    base: PreTrainedTokenizerBase,
    finetuned: PreTrainedTokenizerBase,
    ours: dict[int, str],
    theirs: dict[int, str],
    n_agree: int,
) -> str | None:
    smaller = min(len(ours), len(theirs))
    if n_agree >= LEAST_AGREEMENT * smaller:
        return None
    return (
        f"The tokenizers of {base.name_or_path or 'the base'} ({len(ours)} tokens) and "
        f"{finetuned.name_or_path or 'the finetuned model'} ({len(theirs)} tokens) agree on only {n_agree} of "
        f"{smaller} ids ({100 * n_agree / max(smaller, 1):.0f} %), so their predictions cannot be compared; "
        "choose models that share a vocabulary, or diffing/method=perplexity_diff, which compares texts."
    )
