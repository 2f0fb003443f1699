"""The contract of a method, and how methods are found.

A method is a folder `methods/<name>/` whose package exposes `METHOD`, or an entry point in the
group `diffing.methods`. Choosing one imports no other.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffing.core.blocks import Section
from diffing.core.config import Strict
from diffing.core.errors import UserError
from diffing.core.evidence import Evidence, ScalarEvidence
from diffing.core.layers import Layers, Site
from diffing.core.probing import NamedVector, TokenValues
from diffing.core.suggest import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from diffing.core.result import Result

ENTRY_POINT_GROUP = "diffing.methods"
PLANNED = ("activation_oracle",)


class MethodConfig(Strict):
    """Base of every method's options."""

    name: str


@dataclass(frozen=True)
class Needs:
    """The activations a method reads.

    Args:
        layers: Layers as the user may write them, when they are read from disk; None: `preprocessing.layers`.
        live_layers: The same when the models are read as they run; None: as `layers`.
        sites: Where in each layer; None: `preprocessing.sites`.
        with_preprocessing_layers: Whether `preprocessing.layers` are read besides.
        option: Name of the option that chose the layers, for messages.
    """

    layers: Layers | None = None
    live_layers: Layers | None = None
    sites: tuple[Site, ...] | None = None
    with_preprocessing_layers: bool = False
    option: str = "preprocessing.layers"


@dataclass(frozen=True)
class MethodOutput:
    """What a method computed; the pipeline writes it to the run folder.

    Args:
        tables: By name: `tables/<name>.parquet`.
        evidence: `evidence.json`.
        summary: `summary.json`.
        tensors: By name, in `tensors/tensors.safetensors`.
        notes: Sentences for the reader.
        facts: JSON values for the manifest.
        folders: By name, what writes a folder `files/<name>` of other files.
    """

    tables: Mapping[str, "pa.Table"]
    evidence: Evidence
    summary: tuple[ScalarEvidence, ...]
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodSpec:
    """A method: options, computation, and rendering of what was computed.

    Args:
        name: Folder name, and the name on the command line.
        title: Name for people.
        summary: One sentence.
        config: Class of its options.
        run: `(config, context) -> MethodOutput`; computes, never plots.
        figures: `(result) -> {name: plotly figure}`; reads tables, never computes.
        section: `(result) -> Section` for the report and the dashboard.
        headline: `(result) -> Section` printed in the terminal at the end of a run; tables and paragraphs only.
        needs: `(config) -> Needs`: the activations it reads; None when it reads none.
        needs_models: Whether a method that reads no activations always reads the models; False: they are loaded when it
            asks for `context.pair`.
        size: Headline measure (the part of its name before the dataset) that says how much changed; empty: none does.
            Tokens and examples are claimed only where it is a tenth of a null's or more.
        work: What takes its time: reading text through the models, generating text, or training on activations. The
            benchmark runs the dearer kinds on fewer pairs.
        reads_corpus: Whether it reads the corpus; a result of one that does not is said to rest on no text.
        compares_texts: Whether it compares texts, so that models whose tokenizers differ can be compared; other methods
            refuse them.
        view: `(result) -> None`: draws the dashboard's page of a result from its tables and figures; None: its section.
        probe: `(pair, sequence) -> (TokenValues, …)`: the method's values at each token of one text, for trying a pair
            out; None when it has none.
        vectors: `(result) -> (NamedVector, …)`: the directions a result offers for steering; None when it has none.
        trial: `(result, pair, sequence) -> (TokenValues, …)`: what a result's own dictionary gives at each token of one
            text; None when it has none.
        inputs: `(config) -> {name: digest}`: content of files that options name, which is part of the run's key.
    """

    name: str
    title: str
    summary: str
    config: type[MethodConfig]
    run: Callable[[Any, Any], MethodOutput]
    figures: Callable[["Result"], dict[str, Any]]
    section: Callable[["Result"], Section]
    headline: Callable[["Result"], Section]
    needs: Callable[[Any], Needs | None] = lambda config: None
    needs_models: bool = True
    size: str = ""
    work: Literal["reading", "generating", "training"] = "reading"
    reads_corpus: bool = True
    compares_texts: bool = False
    view: Callable[["Result"], None] | None = None
    probe: Callable[[Any, Any], tuple[TokenValues, ...]] | None = None
    vectors: Callable[["Result"], tuple[NamedVector, ...]] | None = None
    trial: Callable[["Result", Any, Any], tuple[TokenValues, ...]] | None = None
    inputs: Callable[[Any], Mapping[str, str]] = lambda config: {}


def later(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of `module`, imported when it is first called.

    Reading a method's results then needs neither PyTorch nor Streamlit.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def method_names() -> list[str]:
    """Names of all installed methods, built in and from entry points."""
    package = Path(__file__).parents[1] / "methods"
    built_in = {p.parent.name for p in package.glob("*/__init__.py")}
    return sorted(built_in | {e.name for e in _installed()})


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """Methods of other packages; looking for them takes longer than a page may."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def load_method(name: str) -> MethodSpec:
    """Import one method.

    Raises:
        UserError: There is no such method, or it is planned and not built yet.
    """
    names = method_names()
    if name not in names:
        if name in PLANNED:
            raise UserError(f"Method {name} is not built yet; what works now: diffing/method={','.join(names)}.")
        raise UserError(f"There is no method {name!r}: {did_you_mean(name, names)}")
    for entry in _installed():
        if entry.name == name:
            return entry.load()
    return importlib.import_module(f"diffing.methods.{name}").METHOD
