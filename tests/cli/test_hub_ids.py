"""Hub ids on the command line where the hub is out of reach, or refuses: which file, which repository, what to do."""

import sys

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

# httpx up to version 1 of the hub's library, httpx2 since.
httpx = sys.modules[type(default_client_factory()).__module__.partition(".")[0]]


@pytest.fixture
def caps_on_gemma(command, tmp_path, monkeypatch):
    """`organism=caps model=gemma3_1B` with an empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def call(*more):
        return command("organism=caps", "model=gemma3_1B", f"infrastructure.storage.base_dir={tmp_path / 'out'}", *more)

    return call


@pytest.fixture
def hub(monkeypatch):
    """A hub that gives one answer to every request; `hub.asked` is what was requested."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    class Hub:
        def __init__(self):
            self.answer = lambda request: httpx.Response(500)
            self.asked = []

        def __call__(self, request):
            self.asked.append(str(request.url))
            return self.answer(request)

    made = Hub()
    client = lambda: httpx.Client(transport=httpx.MockTransport(made), follow_redirects=True)  # noqa: E731
    huggingface_hub.set_client_factory(client)
    yield made
    huggingface_hub.set_client_factory(default_client_factory)
    huggingface_hub.close_session()


def refusal(status, code=None):
    def answer(request):
        headers = {"X-Error-Code": code, "X-Error-Message": "refused"} if code else {}
        return httpx.Response(status, headers=headers, request=request)

    return answer


def test_offline(caps_on_gemma, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    caps_on_gemma().sentence("config.json", "google/gemma-3-1b-it", "model=smollm2_135M", alone=True)


def test_unreachable(caps_on_gemma, hub):
    def answer(request):
        raise httpx.ConnectError("no route to host", request=request)

    hub.answer = answer
    caps_on_gemma().sentence("config.json", "google/gemma-3-1b-it", "model=smollm2_135M", alone=True)
    assert all("huggingface.co" in url or "hf" in url for url in hub.asked)


def test_gated(caps_on_gemma, hub):
    hub.answer = refusal(403, "GatedRepo")
    page = "https://huggingface.co/google/gemma-3-1b-it"
    caps_on_gemma().sentence("google/gemma-3-1b-it", page, "hf auth login", "model=smollm2_135M", alone=True)


def test_no_such_repository(caps_on_gemma, hub):
    hub.answer = refusal(404, "RepoNotFound")
    caps_on_gemma("model.id=google/gemma-3-1b-itt").sentence("google/gemma-3-1b-itt", alone=True)


def test_no_such_revision(caps_on_gemma, hub):
    hub.answer = refusal(404, "RevisionNotFound")
    caps_on_gemma("model.revision=v9").sentence("google/gemma-3-1b-it", "v9", alone=True)


def test_no_such_file(caps_on_gemma, hub):
    hub.answer = refusal(404, "EntryNotFound")
    caps_on_gemma().sentence("config.json", "google/gemma-3-1b-it", alone=True)


def test_a_hub_that_is_broken(caps_on_gemma, hub):
    hub.answer = refusal(503)
    caps_on_gemma().sentence("google/gemma-3-1b-it", alone=True)


def test_nothing_is_asked_of_the_hub_for_local_pairs(command, bench, hub, tmp_path):
    command(bench.command(tmp_path / "out")).done()
    command(bench.command(tmp_path / "out", finetuned=bench.full)).done()
    assert hub.asked == []
