"""One text or chat through both models, as the dashboard asks for it."""

import numpy as np
import pytest

import diffing
from diffing.core.errors import UserError
from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents
from diffing.models.tiny import perturbed, save_model, tiny_model, tiny_tokenizer
from diffing.pipeline.probing import probe_text, probing_methods
from workbench import pair_loader

TEXT = "The heron stood in the shallows and waited for the others."
CHAT = [{"role": "user", "content": "Who rang the bell?"}, {"role": "assistant", "content": "The heron did."}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=False)()


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("widened"), tiny_model()
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 2, mean_resizing=False)
    save_model(folder / "base", wider, tiny_tokenizer(("zebra", "okapi")))
    save_model(folder / "finetuned", base, tiny_tokenizer())
    return diffing.load_pair(str(folder / "base"), finetuned=str(folder / "finetuned"))


def test_both_methods_of_the_package_have_a_probe():
    assert set(probing_methods()) >= {"kl", "normdiff"}


@pytest.mark.parametrize("item", [TEXT, CHAT], ids=["text", "chat"])
def test_a_text_is_tokenised_as_in_a_corpus(item, pair):
    found = probe_text(pair, item)
    documents = documents_from_texts("text", [item])
    corpus = tokenize_documents({"text": documents}, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    assert list(found.token_ids) == corpus.sequences[0].ids.tolist()
    assert list(found.is_template) == corpus.sequences[0].is_template.tolist()
    assert found.notes == ()
    n_tokens = len(found.token_ids)
    assert n_tokens == len(found.tokens) == len(found.roles)
    assert list(found.values) == ["kl", "normdiff"]
    assert all(len(v.values_T) == n_tokens for values in found.values.values() for v in values)
    assert (len(found.values["kl"]), len(found.values["normdiff"])) == (6, 9)
    for side in (found.predictions.base, found.predictions.finetuned):
        assert side.ids_TK.shape == (n_tokens, 10)
        assert all(i in found.strings for i in side.ids_TK.ravel().tolist())


def test_tokens_as_people_read_them(pair):
    found = probe_text(pair, TEXT)
    assert "".join(found.tokens) == TEXT
    assert set(found.roles) == {"text"}
    assert not any(found.is_template)


def test_roles_and_template_of_a_chat(pair):
    found = probe_text(pair, CHAT)
    assert "".join(found.tokens).startswith("<|im_start|>user\nWho rang")
    assert set(found.roles) == {"user", "assistant"}
    content = "".join(t for t, is_template in zip(found.tokens, found.is_template, strict=True) if not is_template)
    assert content == "Who rang the bell?The heron did."


def test_chosen_methods_only(pair):
    assert list(probe_text(pair, TEXT, ["normdiff"], k=3).values) == ["normdiff"]
    assert probe_text(pair, TEXT, []).values == {}
    assert probe_text(pair, TEXT, [], k=3).predictions.base.ids_TK.shape[1] == 3
    with pytest.raises(UserError, match="nosuch"):
        probe_text(pair, TEXT, ["nosuch"])


@pytest.mark.parametrize("item", [TEXT, CHAT], ids=["text", "chat"])
def test_a_cut_is_noted(item, pair):
    whole, cut = probe_text(pair, item), probe_text(pair, item, max_length=12)
    assert cut.token_ids == whole.token_ids[:12]
    assert cut.is_template == whole.is_template[:12]
    assert cut.notes == ("Only the first 12 tokens of the text were read.",)
    for a, b in zip(cut.values["kl"][:2], whole.values["kl"][:2], strict=True):
        np.testing.assert_allclose(a.values_T, b.values_T[:12], atol=1e-5)
    assert probe_text(pair, item, max_length=len(whole.token_ids)).notes == ()


def test_a_text_longer_than_the_models_read_is_refused(pair):
    assert pair.base.max_positions == 256
    with pytest.raises(UserError, match=r"at most 256; shorten it\.$"):
        probe_text(pair, TEXT * 30)
    assert len(probe_text(pair, TEXT * 30, [], max_length=256).token_ids) == 256


@pytest.mark.parametrize(("text", "said"), [("", "no tokens"), ("Z", "only one token")])
def test_too_little_text(text, said, pair):
    with pytest.raises(UserError, match=rf"^The text has {said}.*\.$"):
        probe_text(pair, text)


@pytest.mark.parametrize("item", [[], [{"role": "captain", "content": "x"}], [{"content": "x"}], 3, [3]])
def test_what_is_no_text_and_no_chat(item, pair):
    with pytest.raises(UserError):
        probe_text(pair, item)


def test_vocabularies_that_differ_are_noted(widened):
    found = probe_text(widened, TEXT)
    assert found.notes == ("The vocabularies differ: probabilities are over the 267 tokens that both models have.",)
    assert len(found.values["kl"]) == 6
    with pytest.raises(UserError, match=r"'zebra'.*one tokenizer\.$"):
        probe_text(widened, "a zebra ran")


def test_a_method_that_cannot_compare_the_pair_says_so(tmp_path):
    save_model(tmp_path / "base", tiny_model(), tiny_tokenizer())
    save_model(tmp_path / "slim", tiny_model(seed=1, hidden_size=16, intermediate_size=24), tiny_tokenizer())
    found = probe_text(diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "slim")), TEXT)
    assert found.values["normdiff"] == ()
    assert found.notes == ("Activation differences: nothing of these two models can be compared.",)
    assert len(found.values["kl"]) == 6
