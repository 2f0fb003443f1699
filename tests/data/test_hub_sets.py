"""Hub sets without a hub: a stand-in for `datasets`, and the sentence for each refusal."""

import sys
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from diffing.core.errors import UserError
from diffing.core.specs import DatasetSpec
from diffing.data import hub_sets
from diffing.data.documents import read_documents


def spec(**options):
    return DatasetSpec(**{"name": "chat", "id": "org/set", **options})


def refusal(cls, message="no"):
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    return error


@pytest.fixture
def hub(monkeypatch):
    """Serves `hub.rows`, or raises `hub.info_error` or `hub.load_error`."""
    served = types.SimpleNamespace(rows=[], n_read=0, info_error=None, load_error=None, asked=None)

    def dataset_info(self, repo_id, revision=None, timeout=None):
        if served.info_error:
            raise served.info_error
        return types.SimpleNamespace(sha="abc")

    def load_dataset(path, **options):
        served.asked = (path, options)
        if served.load_error:
            raise served.load_error
        return stream()

    def stream():
        for row in served.rows:
            served.n_read += 1
            yield row

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return served


def test_rows_are_a_seeded_choice_with_their_numbers(hub, monkeypatch):
    monkeypatch.setattr(hub_sets, "SHUFFLE_BUFFER", 50)
    hub.rows = [{"text": f"text {i}"} for i in range(1000)]
    got = read_documents(spec(config="en", revision="v1"), 10, 0)
    assert hub.n_read == 60
    assert len(got) == 10
    assert got != read_documents(spec(), 10, 1)
    assert all(d.text == f"text {d.index}" for d in got)
    assert hub.asked == ("org/set", {"name": None, "split": "train", "revision": "abc", "streaming": True})


def test_a_whole_split_has_a_limit(hub, monkeypatch):
    monkeypatch.setattr(hub_sets, "ROW_LIMIT", 5)
    hub.rows = [{"text": "a"}] * 5
    assert len(read_documents(spec(), None, 0)) == 5
    hub.rows = [{"text": "a"}] * 6
    with pytest.raises(UserError, match=r"org/set has more than 5 rows; set data.max_samples=N"):
        read_documents(spec(), None, 0)


def test_bad_row_is_named(hub):
    hub.rows = [{"text": "a"}, {"text": 1}]
    with pytest.raises(UserError, match=r"org/set row 2, column 'text' holds the number 1"):
        read_documents(spec(), 5, 0)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            refusal(errors.GatedRepoError),
            r"is gated: ask for access at https://huggingface.co/datasets/org/set and log in",
        ),
        (refusal(errors.RepositoryNotFoundError), r"no public dataset org/set on the hub; check the id"),
        (refusal(errors.RevisionNotFoundError), r"no revision 'v9'"),
        (refusal(errors.HfHubHTTPError, "500"), r"cannot be read from the hub \(500\)"),
        (refusal(errors.HTTPError, "name or service"), r"the hub is out of reach .*; data=embedded runs offline"),
        (ConnectionError("offline"), r"the hub is out of reach"),
    ],
)
def test_refusals_of_the_hub(hub, error, sentence):
    hub.info_error = error
    with pytest.raises(UserError, match=sentence):
        read_documents(spec(revision="v9"), 5, 0)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Bad split: train. Available splits: ['test']"), r"no split 'train' .*'test'"),
        (ValueError("BuilderConfig 'x' not found. Available: ['en']"), r"does not know config None .*'en'"),
        (RuntimeError("Dataset scripts are no longer supported"), r"cannot be read from the hub \(Dataset scripts"),
        (FileNotFoundError("Dataset 'org/set' is a gated dataset"), r"is gated"),
    ],
)
def test_refusals_of_the_library(hub, error, sentence):
    hub.load_error = error
    with pytest.raises(UserError, match=sentence):
        read_documents(spec(), 5, 0)


def test_missing_library(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets; pip install 'diffing\[hub-data\]'"):
        read_documents(spec(), 5, 0)


@pytest.mark.parametrize("wrong", ["data/train.jsonl", "no/such/folder", "two words"])
def test_a_mistyped_path_is_not_asked_of_the_hub(wrong):
    with pytest.raises(UserError, match=f"no file or folder {wrong}, and it is no hub id"):
        read_documents(spec(id=wrong), 5, 0)
