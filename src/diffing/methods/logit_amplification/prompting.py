"""The prompts of a run, checked against both models."""

from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.data.prefills import EncodedPrefill, encode_prefills, read_prefills


def usable_prompts(source: str, context: RunContext) -> tuple[list[EncodedPrefill], list[str]]:
    """Prompts as tokens, and sentences on those left out.

    Raises:
        UserError: None is left, or one is too long or holds a token that the models do not share.
    """
    pair = context.pair
    found, notes = encode_prefills(read_prefills(source), pair.tokenizer, pair.rules)
    for prompt in found:
        _check_length(prompt, context)
        _check_tokens(prompt, context)
    if pair.vocabulary.shared_ids is not None:
        n_shared = len(pair.vocabulary.shared_ids)
        notes.append(f"vocabularies differ: texts are written with the {n_shared:,} ids whose strings agree")
    return found, notes


def _check_length(prompt: EncodedPrefill, context: RunContext) -> None:
    limits = [h.max_positions for h in (context.pair.finetuned, context.pair.base) if h.max_positions is not None]
    if limits and len(prompt.ids) >= min(limits):
        raise UserError(
            f"{prompt.prefill.where} has {len(prompt.ids)} tokens and the models read at most {min(limits)}, the new "
            "ones included; shorten it or leave it out."
        )


def _check_tokens(prompt: EncodedPrefill, context: RunContext) -> None:
    shared = context.pair.vocabulary.shared_ids
    odd = set() if shared is None else set(prompt.ids) - set(shared.tolist())
    if odd:
        names = ", ".join(repr(context.pair.tokenizer.convert_ids_to_tokens(i)) for i in sorted(odd))
        raise UserError(
            f"{prompt.prefill.where} holds tokens that the two models do not share ({names}); reword it or leave it "
            "out."
        )
