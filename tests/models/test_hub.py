"""Hub repositories: every error of huggingface_hub in one sentence, and a whole fetch from a hub of our own."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from diffing.core.errors import UserError
from diffing.models import hub
from diffing.models.folders import weight_names
from diffing.models.sources import resolve
from diffing.models.tiny import save_adapter, save_model, tiny_model, tiny_tokenizer

COMMIT = "c0ffee" + 34 * "0"
REPO = "org/tiny"
SRC = Path(hub.__file__).parents[2]


def response(status: int):
    """A response of whichever HTTP library huggingface_hub uses."""
    library = sys.modules[hub._TransportError.__module__.partition(".")[0]]
    return library.Response(status, request=library.Request("GET", "https://huggingface.co/api"))


def transport_error(name: str):
    library = sys.modules[hub._TransportError.__module__.partition(".")[0]]
    return getattr(library, name)("[Errno -2] Name or service not known")


def http(kind: str, status: int):
    return getattr(errors, kind)("message\nof several lines", response=response(status))


def info(*names: str, card=None):
    siblings = [SimpleNamespace(rfilename=n, size=10**9 if "model" in n else 1000) for n in names]
    return SimpleNamespace(sha=COMMIT, siblings=siblings, card_data=card)


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """No cached files, and every call that would use the network fails the test unless replaced."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(hub.hub, "snapshot_download", raising(errors.LocalEntryNotFoundError("not cached")))
    monkeypatch.setattr(hub.hub, "hf_hub_download", raising(AssertionError("network")))
    monkeypatch.setattr(hub.hub, "model_info", raising(AssertionError("network")))


def refused(match, **options):
    with pytest.raises(UserError, match=match) as caught:
        resolve(options.pop("id", REPO), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


ASKING = {
    "no network": (lambda: transport_error("ConnectError"), "the hub cannot be reached .*check the network"),
    "timeout": (lambda: transport_error("ConnectTimeout"), "the hub cannot be reached"),
    "proxy": (lambda: transport_error("ProxyError"), "the hub cannot be reached"),
    "offline": (lambda: errors.OfflineModeIsEnabled("offline"), "offline; try again"),
    "no repository": (lambda: http("RepositoryNotFoundError", 404), "check its spelling, or `hf auth login`"),
    "gated": (lambda: http("GatedRepoError", 403), r"https://huggingface\.co/org/tiny, then .*`hf auth login`"),
    "disabled": (lambda: http("DisabledRepoError", 403), "the hub has disabled it"),
    "server": (lambda: http("HfHubHTTPError", 503), "HTTP status 503; try again later"),
    "portal": (lambda: json.JSONDecodeError("Expecting value", "<html>", 0), "Expecting value.*try again later"),
}


@pytest.mark.parametrize("case", ASKING)
def test_asking_fails(monkeypatch, case):
    error, match = ASKING[case]
    monkeypatch.setattr(hub.hub, "model_info", raising(error()))
    sentence = refused(match)
    assert sentence.startswith("Cannot get config.json of hub repository org/tiny: ")
    assert sentence.endswith("; model=smollm2_135M runs offline.")


def test_the_wanted_file_is_named(monkeypatch):
    monkeypatch.setattr(hub.hub, "model_info", raising(transport_error("ConnectError")))
    assert "Cannot get sub/adapter_config.json of" in refused("reached", what="adapter", subfolder="sub")
    assert "Cannot get tokenizer.json of" in refused("reached", what="tokenizer")
    assert "of hub repository gpt2:" in refused("reached", id="gpt2")


def test_a_revision_that_is_not_there(monkeypatch):
    monkeypatch.setattr(hub.hub, "model_info", raising(http("RevisionNotFoundError", 404)))
    refused("org/tiny at revision v9: there is no such revision; check revision=v9", revision="v9")


def test_offline_by_variable_asks_nobody(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("HF_HUB_OFFLINE is set and it is not in the cache")


FETCHING = {
    "gated": (lambda: http("GatedRepoError", 401), "ask for access at https://huggingface.co/org/tiny"),
    "vanished": (lambda: http("RemoteEntryNotFoundError", 404), "there is no such file"),
    "cut off": (lambda: errors.LocalEntryNotFoundError("An error happened"), "the hub cannot be reached"),
    "unauthorised": (lambda: http("HfHubHTTPError", 401), "HTTP status 401"),
    "downloader": (lambda: RuntimeError("Data processing error"), "Data processing error"),
}


@pytest.mark.parametrize("case", FETCHING)
def test_fetching_the_configuration_fails(monkeypatch, case):
    error, match = FETCHING[case]
    monkeypatch.setattr(hub.hub, "model_info", lambda *args, **kwargs: info("config.json", "model.safetensors"))
    monkeypatch.setattr(hub.hub, "hf_hub_download", raising(error()))
    assert "Cannot get config.json of hub repository org/tiny:" in refused(match)


def test_fetching_the_weights_fails(monkeypatch):
    monkeypatch.setattr(hub.hub, "model_info", lambda *args, **kwargs: info("config.json", "model.safetensors"))
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *args, **kwargs: "")
    monkeypatch.setattr(hub.hub, "snapshot_download", raising(transport_error("ReadTimeout")))
    assert "Cannot get model.safetensors of" in refused("cannot be reached")
    monkeypatch.setattr(hub.hub, "snapshot_download", raising(OSError(28, "No space left on device")))
    refused(r"disk is full; free some space or set HF_HOME=DIR")


LISTINGS = {
    "pickles only": (
        ("config.json", "pytorch_model.bin"),
        "only pytorch_model.bin, which is never loaded .*convert it",
    ),
    "pickled adapter": (("adapter_config.json", "adapter_model.bin"), "only adapter_model.bin, which is never loaded"),
    "no weights": (("config.json", "README.md"), "Hub repository org/tiny has no model.safetensors"),
    "no model": (("README.md",), "is no model: it holds neither config.json nor adapter_config.json"),
    "below": (("README.md", "a/adapter_config.json", "b/config.json"), "set subfolder to one of a, b"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_repository_without_what_is_needed_moves_no_bytes(monkeypatch, case):
    names, match = LISTINGS[case]
    monkeypatch.setattr(hub.hub, "model_info", lambda *args, **kwargs: info(*names))
    refused(match)


def test_a_subfolder_that_is_not_there(monkeypatch):
    monkeypatch.setattr(hub.hub, "model_info", lambda *args, **kwargs: info("config.json", "model.safetensors"))
    refused("org/tiny has no folder sub; check subfolder", subfolder="sub")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a fetch needs, over the files in `root`; `org/gated` lists its files and gives none."""

    root: Path
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        type(self).asked.append(f"{self.command} {path}")
        repo = next((r for r in (REPO, "org/gated") if f"/{r}/" in f"{path}/"), None)
        if repo is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/") and "/tree/" in path:
            files = [{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in self.files().items()]
            self.answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/"):
            siblings = [{"rfilename": n, "size": s} for n, s in self.files().items()]
            facts = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
            self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})
        elif repo == "org/gated":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            content = (self.root / path.partition("/resolve/")[2].partition("/")[2]).read_bytes()
            etag = f'"{abs(hash(path)):040x}"'
            self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag, "Accept-Ranges": "bytes"})

    def files(self):
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in self.root.rglob("*") if p.is_file()}

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A hub on this machine with a model at the root of `org/tiny` and an adapter in `sub`."""
    root = tmp_path_factory.mktemp("hub")
    save_model(root, tiny_model(), tiny_tokenizer())
    save_adapter(root / "sub", tiny_model())
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "old/model.safetensors", "code.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not wanted")
    handler = type("Handler", (Hub,), {"root": root, "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


SCRIPT = """
import json, sys, time
from diffing.core.errors import UserError
from diffing.models.sources import resolve
start = time.perf_counter()
try:
    found = resolve(sys.argv[1], None, sys.argv[2] or None, sys.argv[3])
    answer = {"folder": str(found.folder), "revision": found.revision, "hash": found.content_hash, "card": found.card,
              "files": sorted(p.name for p in found.folder.iterdir() if p.is_file())}
except UserError as error:
    answer = {"error": str(error)}
print(json.dumps({**answer, "seconds": time.perf_counter() - start}))
"""


def resolve_apart(cache: Path, endpoint: str, repo=REPO, subfolder="", what="model", **environment):
    """Resolve in a fresh process: huggingface_hub reads its endpoint and cache once, when it is imported."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(SRC)}
    unset = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    kept = {k: v for k, v in os.environ.items() if k not in unset}
    command = [sys.executable, "-c", SCRIPT, repo, subfolder, what]
    done = subprocess.run(command, env={**kept, **own, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_whole_fetch_and_then_without_the_hub(server, tmp_path):
    endpoint = f"http://127.0.0.1:{server.server_port}"
    found = resolve_apart(tmp_path, endpoint)
    tokenizer = [n for n in found["files"] if n not in ("config.json", "model.safetensors")]
    assert {"config.json", "model.safetensors"} < set(found["files"])
    assert set(tokenizer) <= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (found["revision"], found["hash"]) == (COMMIT, f"{REPO}@{COMMIT}")
    assert found["card"] == {"origin": f"https://huggingface.co/{REPO}", "licence": "mit"}
    bodies = [a for a in server.RequestHandlerClass.asked if a.startswith("GET") and "/resolve/" in a]
    assert bodies[0].endswith("/config.json")
    assert len(bodies) == len(found["files"])
    unreachable = "http://127.0.0.1:9"
    again = resolve_apart(tmp_path, unreachable)
    assert (again["folder"], again["hash"]) == (found["folder"], found["hash"])
    assert resolve_apart(tmp_path, endpoint, HF_HUB_OFFLINE="1")["folder"] == found["folder"]
    adapter = resolve_apart(tmp_path, unreachable, subfolder="sub")
    assert "Cannot get sub/config.json of" in adapter["error"]
    assert adapter["seconds"] < 8
    fetched = resolve_apart(tmp_path, endpoint, subfolder="sub")
    assert fetched["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    (Path(found["folder"]) / "model.safetensors").unlink()
    assert "Cannot get model.safetensors of" in resolve_apart(tmp_path, unreachable)["error"]


@pytest.mark.slow
def test_closed_and_missing_repositories(server, tmp_path):
    endpoint = f"http://127.0.0.1:{server.server_port}"
    gated = resolve_apart(tmp_path, endpoint, repo="org/gated")
    assert "Cannot get config.json of hub repository org/gated: it is gated; ask for access at" in gated["error"]
    missing = resolve_apart(tmp_path, endpoint, repo="org/nothing")
    assert "check its spelling" in missing["error"]


def test_weights_of_a_folder_without_index(tmp_path):
    assert weight_names(tmp_path, "x") == ["model.safetensors"]
