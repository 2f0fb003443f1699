"""Text from a model, token by token, as the dashboard shows it and methods read it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.models.decoding import Decoding
from diffing.models.handle import ModelHandle
from diffing.models.sampling import GumbelNoise, Sampling, choose
from diffing.models.steering import Steering, check_layer
from diffing.models.text_stream import TextStream


@dataclass(frozen=True)
class GeneratedToken:
    """One token that a model wrote.

    Args:
        id: Its id.
        text: The characters that it completes; "" for special tokens and within a character.
        log_prob: Its log-probability in nats under the model's own distribution (steered where it is), before
            temperature, `top_k` and `top_p`.
        is_end: Whether it ends the text.
    """

    id: int
    text: str
    log_prob: float
    is_end: bool


def generate(
    handle: ModelHandle,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    end_ids: Collection[int],
    steering: Steering | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> Iterator[GeneratedToken]:
    """Tokens that continue `prompt_ids`, one forward pass each, made as they are asked for.

    Weights, hooks and the lock are in force during a pass only: generators may be advanced in turns, and dropped
    or closed at any time. The text depends on the model, prompt, sampling and steering alone.

    Args:
        handle: The model.
        prompt_ids: At least one token.
        sampling: How to choose.
        end_ids: Tokens after which nothing follows; see `end_ids`. The last token given is one of them, or the one
            at which `max_new_tokens` or the model's longest sequence is reached.
        steering: A vector added to the residual stream.
        lock: Held during each pass, where threads share a module (a `threading.RLock`).

    Raises:
        UserError: The prompt is empty, too long, or in another vocabulary, the steering does not fit the model, or
            (while running) the logits are not finite.
    """
    n_new = min(sampling.max_new_tokens, room(handle, prompt_ids))
    check_ids(handle, prompt_ids)
    if steering is not None:
        check_layer(handle, steering.layer)
    decoding = Decoding(handle, prompt_ids, steering)
    text = TextStream(handle.tokenizer, prompt_ids)
    return _tokens(decoding, text, n_new, sampling, frozenset(end_ids), nullcontext() if lock is None else lock)


def end_ids(source: ModelHandle | PreTrainedTokenizerBase, rules: TemplateRules) -> frozenset[int]:
    """Ids after which a text is at its end: the tokenizer's and the model's end tokens, and the rules' end of turn.

    Args:
        source: A model, or a tokenizer alone.
        rules: Chat template rules.
    """
    tokenizer = source.tokenizer if isinstance(source, ModelHandle) else source
    found = [tokenizer.eos_token_id]
    if isinstance(source, ModelHandle) and source.module.generation_config is not None:
        own = source.module.generation_config.eos_token_id
        found += own if isinstance(own, list) else [own]
    if rules.end_of_turn is not None:
        turn = tokenizer.convert_tokens_to_ids(rules.end_of_turn)
        if isinstance(turn, int) and tokenizer.convert_ids_to_tokens(turn) == rules.end_of_turn:
            found.append(turn)
    return frozenset(i for i in found if isinstance(i, int))


def _tokens(
    decoding: Decoding,
    text: TextStream,
    n_new: int,
    sampling: Sampling,
    ends: frozenset[int],
    lock: AbstractContextManager[Any],
) -> Iterator[GeneratedToken]:
    noise = GumbelNoise(sampling.seed)
    for number in range(n_new):
        with lock:
            logits_V = decoding.next_logits()
        chosen = choose(logits_V, sampling, noise)
        is_end = chosen in ends
        piece = "" if is_end else text.push(chosen)
        if is_end or number == n_new - 1:
            piece += text.rest()
        yield GeneratedToken(chosen, piece, _log_prob(logits_V, chosen), is_end)
        if is_end:
            return
        decoding.append(chosen)


def _log_prob(logits_V: Tensor, token_id: int) -> float:
    return float(logits_V[token_id].double() - logits_V.double().logsumexp(0))


def room(handle: ModelHandle, prompt_ids: Sequence[int]) -> int:
    """Tokens that may follow the prompt.

    Raises:
        UserError: None may.
    """
    limit = handle.max_positions
    if limit is None:
        return 2**62
    if len(prompt_ids) >= limit:
        raise UserError(
            f"The prompt has {len(prompt_ids)} tokens and the model reads at most {limit}, the new ones included; "
            f"shorten it to {limit - 1} tokens or fewer."
        )
    return limit - len(prompt_ids)


def check_ids(handle: ModelHandle, prompt_ids: Sequence[int]) -> None:
    """Raises UserError: There is no token, or one that the model does not know."""
    if not prompt_ids:
        raise UserError("The prompt has no tokens; write something for the model to continue.")
    n_rows = next(handle.sites.embed.parameters()).shape[0]
    odd = next((i for i in prompt_ids if not 0 <= i < n_rows), None)
    if odd is not None:
        raise UserError(
            f"The prompt holds token id {odd} and the model knows {n_rows} ids; encode it with the model's tokenizer."
        )
