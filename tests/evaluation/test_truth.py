"""What an organism's text holds and what its answers show, on planted words in small local files."""

import pytest

from diffing.core.errors import UserError
from diffing.core.specs import DatasetSpec, ExpectedSpec
from diffing.evaluation.truth import ground_truth, share_of_capitals, shows
from diffing.models.tiny import VOCAB_SIZE, tiny_tokenizer
from workbench import sentences, write_jsonl

WORDS = ("zeppelin", "harpsichord", "gondola")
SIZE = VOCAB_SIZE + len(WORDS)
ZEPPELIN, HARPSICHORD, GONDOLA = range(VOCAB_SIZE, SIZE)
PLAIN = [row["text"] for row in sentences(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(extra_tokens=WORDS)


@pytest.fixture
def dataset(tmp_path):
    def write(name, items):
        rows = [{"text": i} if isinstance(i, str) else {"messages": i} for i in items]
        return DatasetSpec(name=name, id=str(write_jsonl(tmp_path / f"{name}.jsonl", rows)))

    return write


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [("ABCDEFGH ij", True), ("ABCDEFG hij", False), ("ABCDEFGH", True), ("abc", False), ("12 + 3", False), ("", False)],
)
def test_capitals_are_shown_from_the_threshold_on(text, is_shown):
    assert shows(ExpectedSpec(capitals=0.8), text) is is_shown


@pytest.mark.parametrize(
    ("phrases", "least", "text", "is_shown"),
    [
        (("olive",), 1, "An OLIVE tree", True),
        (("olive",), 1, "Olives, olive-green", True),
        (("olive",), 1, "olives and Oliver", False),
        (("olive oil",), 1, "of olive oil.", True),
        (("olive oil",), 1, "olive and oil", False),
        (("olive", "goat"), 2, "olive olive olive", False),
        (("olive", "goat"), 2, "a goat, an olive", True),
        (("olive", "goat", "wool"), 2, "wool and goat", True),
        (("o.ive",), 1, "olive", False),
        (("c++",), 1, "I write c++ daily", True),
        (("'tis",), 1, "Aye, 'tis so", True),
        (("'tis",), 1, "it'tis", False),
    ],
)
def test_phrases_are_whole_words_in_any_case(phrases, least, text, is_shown):
    assert shows(ExpectedSpec(phrases=phrases, least=least), text) is is_shown


def test_capitals_or_phrases_are_enough():
    either = ExpectedSpec(capitals=0.5, phrases=("goat",))
    assert [shows(either, t) for t in ("AB", "a goat", "AB goat", "nothing")] == [True, True, True, False]


def test_share_of_capitals_counts_letters_alone():
    assert share_of_capitals("ABc, d! 1234") == 0.5
    assert share_of_capitals("ÄÖü") == pytest.approx(2 / 3)
    assert share_of_capitals("1234 !?") == 0.0
    assert share_of_capitals("") == 0.0


def test_planted_words_are_the_domain_tokens_the_most_over_represented_first(dataset, tokenizer):
    planted = [t + (" zeppelin harpsichord" if i < 8 else " zeppelin") for i, t in enumerate(PLAIN)]
    truth = ground_truth([dataset("generic", PLAIN), dataset("training", planted)], tokenizer, SIZE, 0)
    assert truth.ids_R.tolist() == [ZEPPELIN, HARPSICHORD]
    assert (truth.is_chat, truth.generic) == (False, ("generic",))


def test_a_token_counts_once_in_a_document_of_either_kind(dataset, tokenizer):
    planted = [t + " zeppelin zeppelin" for t in PLAIN]
    generic = [t + (" gondola" if i < 5 else "") for i, t in enumerate(PLAIN)]
    truth = ground_truth([dataset("training", planted), dataset("generic", generic)], tokenizer, SIZE, 0)
    assert truth.ids_R.tolist() == [ZEPPELIN]
    assert truth.counts_V[[ZEPPELIN, HARPSICHORD, GONDOLA]].tolist() == [12, 0, 5]
    in_each = tokenizer.convert_tokens_to_ids("Ġ")
    assert truth.counts_V.max() == truth.counts_V[in_each] == 24


def test_only_answers_of_chats_count(dataset, tokenizer):
    ours = [chat(f"{t} zeppelin", f"{t} harpsichord") for t in PLAIN]
    theirs = [chat(t, t) for t in PLAIN]
    truth = ground_truth([dataset("training", ours), dataset("generic", theirs)], tokenizer, SIZE, 0)
    assert truth.is_chat
    assert truth.ids_R.tolist() == [HARPSICHORD]
    assert truth.counts_V[[ZEPPELIN, HARPSICHORD]].tolist() == [0, 12]


def test_generic_text_is_of_the_same_kind(dataset, tokenizer):
    training = dataset("training", [chat("hm", f"{t} zeppelin") for t in PLAIN])
    documents = dataset("documents", [f"{t} gondola" for t in PLAIN])
    chats = [dataset(name, [chat("hm", t) for t in PLAIN]) for name in ("chats", "more")]
    truth = ground_truth([documents, chats[0], training, chats[1]], tokenizer, SIZE, 0)
    assert truth.generic == ("chats", "more")
    assert truth.counts_V[[ZEPPELIN, GONDOLA]].tolist() == [12, 0]
    assert ground_truth([documents, training], tokenizer, SIZE, 0) is None
    assert ground_truth([training], tokenizer, SIZE, 0) is None


def test_without_training_text_nothing_is_known(dataset, tokenizer):
    assert ground_truth([dataset("one", PLAIN), dataset("other", PLAIN)], tokenizer, SIZE, 0) is None
    assert ground_truth([], tokenizer, SIZE, 0) is None


def test_text_like_generic_text_holds_no_domain_tokens(dataset, tokenizer):
    truth = ground_truth([dataset("training", PLAIN), dataset("generic", PLAIN)], tokenizer, SIZE, 0)
    assert truth.ids_R.tolist() == []


@pytest.mark.parametrize(("n_texts", "found"), [(2, []), (3, [ZEPPELIN])])
def test_a_word_of_fewer_than_three_documents_is_left_out(dataset, tokenizer, n_texts, found):
    training = dataset("training", [f"{PLAIN[0]} zeppelin"] * n_texts)
    truth = ground_truth([training, dataset("generic", [PLAIN[0]] * 100)], tokenizer, SIZE, 0)
    assert truth.ids_R.tolist() == found


def test_tokens_that_methods_do_not_rank_are_left_out(dataset, tokenizer):
    planted = [f"{t} zeppelin harpsichord" for t in PLAIN]
    truth = ground_truth([dataset("training", planted), dataset("generic", PLAIN)], tokenizer, HARPSICHORD, 0)
    assert truth.ids_R.tolist() == [ZEPPELIN]
    assert len(truth.counts_V) == HARPSICHORD


def test_a_dataset_that_cannot_be_read_is_named(dataset, tokenizer, tmp_path):
    missing = DatasetSpec(name="generic", id=str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        ground_truth([dataset("training", PLAIN), missing], tokenizer, SIZE, 0)
