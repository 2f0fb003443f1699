"""vLLM through a stand-in: what it is asked for, what becomes of its answer, and what it cannot do."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from diffing.core.errors import UserError
from diffing.models.batch_generation import Prompt
from diffing.models.plan import plan_pair
from diffing.models.sampling import Sampling
from diffing.models.tiny import save_pair, tiny_tokenizer
from diffing.models.vllm_sampling import VllmSampler

TOKENIZERS = (tiny_tokenizer(), tiny_tokenizer())
PROMPTS = [Prompt((5, 6, 7), 11), Prompt((8,), 12)]


class Engine:
    """Writes the prompt's first token again, then the end token."""

    made = ()

    def __init__(self, model, **options):
        self.model, self.options, self.asked = model, options, []
        Engine.made = (*Engine.made, self)

    def generate(self, prompts, parameters, lora_request):
        self.asked.append((prompts, parameters, lora_request))
        written = [[p["prompt_token_ids"][0], 2] for p in prompts]
        outputs = [
            SimpleNamespace(token_ids=w, logprobs=[{i: SimpleNamespace(logprob=-0.5)} for i in w]) for w in written
        ]
        return [SimpleNamespace(outputs=[o]) for o in outputs]


@pytest.fixture
def vllm(monkeypatch):
    module, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = Engine, lambda **options: SimpleNamespace(**options)
    request.LoRARequest = lambda *parts: parts
    for name, value in (("vllm", module), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(Engine, "made", ())


def test_both_sides_of_an_adapter_are_one_engine(vllm, tmp_path):
    plan = plan_pair(save_pair(tmp_path))
    sampler = VllmSampler(plan, TOKENIZERS)
    sampling = Sampling(9, 0.7, 0.8, 5)
    for is_finetuned in (False, True):
        found = sampler.write(is_finetuned, PROMPTS, sampling, {2})
        assert [t.ids for t in found] == [(5, 2), (8, 2)]
        assert found[0].log_probs == (-0.5, -0.5)
        assert found[0].is_ended
        assert found[0].text == TOKENIZERS[0].decode([5])
    (engine,) = Engine.made
    assert engine.model == str(tmp_path / "base")
    assert engine.options["max_lora_rank"] == 4
    prompts, parameters, adapter = engine.asked[1]
    assert prompts[0] == {"prompt_token_ids": [5, 6, 7]}
    assert [p.seed for p in parameters] == [11, 12]
    asked = vars(parameters[0])
    wanted = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.8, "top_k": 5, "stop_token_ids": [2]}
    assert wanted.items() <= asked.items()
    assert engine.asked[0][2] is None
    assert adapter[2] == str(tmp_path / "finetuned")


def test_full_models_are_an_engine_each(vllm, tmp_path):
    sampler = VllmSampler(plan_pair(save_pair(tmp_path, full=True)), TOKENIZERS)
    for is_finetuned in (True, True, False):
        sampler.write(is_finetuned, PROMPTS, Sampling(3), {2})
    assert [e.model for e in Engine.made] == [str(tmp_path / "finetuned"), str(tmp_path / "base")]
    assert all("enable_lora" not in e.options for e in Engine.made)


def test_a_text_without_its_end_is_not_ended(vllm, tmp_path):
    sampler = VllmSampler(plan_pair(save_pair(tmp_path)), TOKENIZERS)
    assert not sampler.write(True, PROMPTS, Sampling(3), {77})[0].is_ended


def test_without_vllm_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'diffing\[vllm\]', or use sampler=own"):
        VllmSampler(plan_pair(save_pair(tmp_path)), TOKENIZERS)


def test_weights_that_vllm_cannot_read_are_refused(vllm, tmp_path):
    from dataclasses import replace

    plan = plan_pair(save_pair(tmp_path))
    with pytest.raises(UserError, match=r"reads model folders .* my.gguf is a GGUF file"):
        VllmSampler(replace(plan, base=replace(plan.base, origin="gguf", id="my.gguf")), TOKENIZERS)
    model = plan.spec.model.model_copy(update={"quantization": "4bit"})
    with pytest.raises(UserError, match=r"not amplified or quantised"):
        VllmSampler(replace(plan, spec=plan.spec.model_copy(update={"model": model})), TOKENIZERS)
