"""The texts that scaled models write after the same prompts, and how likely both models find them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffing.analysis.text_scores import continuation_log_probs
from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.data.prefills import EncodedPrefill, encode_prefills, read_prefills
from diffing.methods.weight_amplification.config import WeightAmplificationConfig
from diffing.models.batch_generation import Amplified, Continuation, Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.pair import ModelPair
from diffing.models.sampling import Sampling


@dataclass(frozen=True)
class Written:
    """A text, and its mean log-probability per token under the base and under the finetuned model, in nats."""

    text: str
    ids: tuple[int, ...]
    is_ended: bool
    log_prob_base: float
    log_prob_ft: float

    @property
    def likelihood(self) -> float:
        """Mean log-probability per token under whichever of both models finds the text likelier."""
        return max(self.log_prob_base, self.log_prob_ft)


def chosen_prompts(config: WeightAmplificationConfig, pair: ModelPair) -> tuple[list[EncodedPrefill], list[str]]:
    """Raw prompts and chats in turn, and sentences on what is left out.

    Raises:
        UserError: The prompts cannot be read, or none is left.
    """
    found, notes = encode_prefills(read_prefills(config.prompts), pair.tokenizer, pair.rules)
    shared = pair.vocabulary.shared_ids
    known = None if shared is None else set(shared.tolist())
    if known is not None:
        found = [p for p in found if known.issuperset(p.ids)]
        notes = [*notes, "vocabularies differ: texts are written with the ids whose strings agree"]
    if not found:
        raise UserError(
            f"No prompt of {config.prompts} is left: each holds tokens that the two models do not share; give others "
            "with diffing.method.prompts=FILE."
        )
    kinds = [[p for p in found if p.prefill.kind == kind] for kind in ("raw", "chat")]
    longest = max(map(len, kinds))
    in_turn = [mine[i] for i in range(longest) for mine in kinds if i < len(mine)]
    return in_turn[: config.n_prompts], notes


class Writer:
    """Lets the pair's finetuned model, as it is at the time, continue the same prompts with the same random numbers.

    Args:
        pair: The models.
        prompts: What is continued.
        config: How texts are sampled.
        seed: Seed of the run.
    """

    def __init__(
        self, pair: ModelPair, prompts: Sequence[EncodedPrefill], config: WeightAmplificationConfig, seed: int
    ) -> None:
        self.prompts = prompts
        seeds = [int(generator(seed, "weight_amplification", "text", i).integers(2**62)) for i in range(len(prompts))]
        self._pair = pair
        self._asked = [Prompt(p.ids, s) for p, s in zip(prompts, seeds, strict=True)]
        self._sampling = Sampling(config.max_new_tokens, config.temperature)
        self._ends = end_ids(pair.finetuned, pair.rules)
        # Where the vocabularies differ, the base could not read what the finetuned model writes with ids of its own.
        shared = pair.vocabulary.shared_ids
        self._writer = pair.finetuned if shared is None else Amplified(pair.finetuned, pair.base, 0.0, shared)

    def write(self, done: Callable[[int], None]) -> list[Continuation]:
        """A text for every prompt; `done` is told the number of new tokens.

        Raises:
            UserError: A prompt does not fit the model, or logits are not finite.
        """
        return write_texts(self._writer, self._asked, self._sampling, self._ends, done)

    def judge(self, made: Sequence[Continuation]) -> list[Written]:
        """The texts with their log-probabilities; call it where the finetuned model is as it was loaded."""
        texts = [(p.ids, m.ids) for p, m in zip(self._asked, made, strict=True)]
        base = continuation_log_probs(self._pair.base, texts)
        same = self._pair.finetuned is self._pair.base
        finetuned = base if same else continuation_log_probs(self._pair.finetuned, texts)
        return [
            Written(m.text, m.ids, m.is_ended, float(b.mean()), float(f.mean()))
            for m, b, f in zip(made, base, finetuned, strict=True)
        ]
