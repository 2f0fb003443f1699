"""Plain sampling with vLLM, an optional extra for large models on an accelerator; imported only when asked for."""

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.models.adapters import read_config
from diffing.models.batch_generation import Continuation, Prompt
from diffing.models.plan import PairPlan
from diffing.models.sampling import Sampling
from diffing.models.sources import ResolvedSource


class VllmSampler:
    """Writes texts of either model of a pair with vLLM; one engine is kept at a time.

    Args:
        plan: Where the models' files are.
        tokenizers: Of the base and of the finetuned model, for decoding.

    Raises:
        UserError: vLLM is not installed, or cannot read the pair's weights.
    """

    def __init__(self, plan: PairPlan, tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]) -> None:
        self._plan, self._tokenizers = plan, tokenizers
        for source in (plan.base, None if plan.kind == "adapter" else plan.finetuned):
            _check_readable(source)
        if plan.spec.amplification is not None or plan.spec.model.quantization != "none":
            raise UserError(
                "vLLM reads weights as they are stored, not amplified or quantised here; drop organism.amplification "
                "and model.quantization, or use sampler=own."
            )
        self._adapter_folder = plan.finetuned.folder if plan.kind == "adapter" and plan.finetuned else None
        self._vllm = _vllm()
        self._engine: tuple[str, Any] | None = None

    def write(
        self, is_finetuned: bool, prompts: Sequence[Prompt], sampling: Sampling, end_ids: Collection[int]
    ) -> list[Continuation]:
        """Continue every prompt, steering and α left out of account; in the order of the prompts."""
        given = [{"prompt_token_ids": list(p.ids)} for p in prompts]
        parameters = [self._parameters(p, sampling, end_ids) for p in prompts]
        engine = self._engine_of(is_finetuned)
        outputs = engine.generate(given, parameters, lora_request=self._adapter() if is_finetuned else None)
        tokenizer = self._tokenizers[is_finetuned]
        return [_continuation(output.outputs[0], end_ids, tokenizer) for output in outputs]

    def _parameters(self, prompt: Prompt, sampling: Sampling, end_ids: Collection[int]) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            top_k=sampling.top_k, seed=prompt.seed, stop_token_ids=sorted(end_ids), ignore_eos=True, logprobs=0,
            detokenize=False,
        )  # fmt: skip

    def _engine_of(self, is_finetuned: bool) -> Any:
        own = self._plan.finetuned if is_finetuned and self._adapter_folder is None else None
        folder = str((own or self._plan.base).folder)
        if self._engine is None or self._engine[0] != folder:
            self._engine = None
            self._engine = folder, self._vllm.LLM(folder, dtype=self._plan.dtypes[is_finetuned], seed=0, **self._lora())
        return self._engine[1]

    def _lora(self) -> dict[str, Any]:
        if self._adapter_folder is None:
            return {}
        rank = read_config(self._adapter_folder, "the finetuned model").get("r")
        if not isinstance(rank, int):
            raise UserError("vLLM serves LoRA adapters only, and this adapter has no rank; use sampler=own.")
        return {"enable_lora": True, "max_lora_rank": rank}

    def _adapter(self) -> Any:
        if self._adapter_folder is None:
            return None
        return importlib.import_module("vllm.lora.request").LoRARequest("finetuned", 1, str(self._adapter_folder))


def _vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"sampler=vllm needs vLLM, which cannot be imported ({error}); install it with "
            "pip install 'diffing[vllm]', or use sampler=own."
        ) from None


def _check_readable(source: ResolvedSource | None) -> None:
    if source is not None and source.origin in ("gguf", "embedded"):
        raise UserError(
            f"vLLM reads model folders and hub repositories, and {source.id} is a GGUF file or embedded; name a folder "
            "or a hub id, or use sampler=own."
        )


def _continuation(output: Any, end_ids: Collection[int], tokenizer: PreTrainedTokenizerBase) -> Continuation:
    ids = tuple(int(i) for i in output.token_ids)
    log_probs = tuple(float(step[i].logprob) for i, step in zip(ids, output.logprobs, strict=True))
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return Continuation(ids, log_probs, text, bool(ids) and ids[-1] in end_ids)
