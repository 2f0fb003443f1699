"""A fake manifest, and a fake method that shows one block of each kind, all with hostile text."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.evidence import TokenEvidence
from diffing.core.method import MethodConfig, MethodSpec

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"

SCALARS = [
    {
        "name": "mean KL · chat",
        "value": 0.43219,
        "low": 0.41,
        "high": 0.4567,
        "null": 2e-6,
        "unit": "nats",
        "claimed": None,
    },
    {"name": "ΔNLL", "value": -0.125, "low": None, "high": None, "null": None, "unit": "nats", "claimed": True},
    {"name": "agreement", "value": 0.5, "low": 0.45, "high": 0.55, "null": 0.999, "unit": "share", "claimed": False},
    {"name": HOSTILE, "value": None, "low": None, "high": None, "null": None, "unit": HOSTILE, "claimed": None},
]
TOKENS = (
    TokenEvidence(HOSTILE, (1,), 0.5, 0.01, None, None),
    TokenEvidence(" the", (2,), 0.25, 0.01, None, None),
    TokenEvidence("\n\n", (3,), 0.125, None, None, None),
)
HEAT = (
    HeatToken(HOSTILE, 2.0, (HOSTILE, "KL 2 nats")),
    HeatToken(" one\n", 0.5, ("' one'", "KL 0.5 nats")),
    HeatToken("\u202eevil", None, ()),
    HeatToken("", 0.0, ("empty", "KL 0 nats")),
)
BLOCKS: tuple[Block, ...] = (
    Heading(f"Numbers {HOSTILE}", 3),
    Paragraph(HOSTILE),
    Table(("token", "share"), ((HOSTILE, 0.25), (" x", None)), f"risen {HOSTILE}", ("token",)),
    Table(("token", "share"), ((" y", 1234),), "fallen", ("token",)),
    Heading("Below", 3),
    Figure("curve", "The curve", f"A curve {HOSTILE}"),
    Figure("absent", "Not there", "Nothing"),
    HeatmapList(tuple(Heatmap(f"{HOSTILE} {i}", HEAT, 2.0, "nats") for i in range(5)), 2.0, "nats"),
    HeatmapList((), 0.0, "nats"),
)


def manifest() -> dict[str, Any]:
    return {
        "schema": 1,
        "method": "fake",
        "fingerprint": "ab12",
        "created": "2025-11-24T03:00:00+00:00",
        "command": f"python main.py organism={HOSTILE}",
        "config": {"null_pair": "none", "seed": 7, "note": HOSTILE},
        "pair": {
            "model": "tiny",
            "organism": f"caps{HOSTILE}",
            "variant": "loud",
            "base_id": "org/tiny",
            "finetuned_id": f"org/{HOSTILE}",
            "facts": {
                "base": {"revision": "r" * 40, "content_hash": "b" * 64, "origin": "hub", "card": {"licence": "MIT"}},
                "finetuned": {"revision": None, "content_hash": "f" * 64, "origin": "local", "card": {}},
            },
        },
        "data": {
            "datasets": ["chat", "https://example.org/set"],
            "fingerprint": "da7a",
            "spec": {},
            "n_tokens": 12345,
            "tokens": {"chat": 12000},
            "documents": {"chat": 30},
        },
        "seed": 7,
        "wall_seconds": 75.2,
        "peak_memory_bytes": 3 * 2**30,
        "versions": {"torch": "2.13.0"},
        "git": "c0ffee",
        "facts": {},
        "notes": [HOSTILE, "3 sequences were left out."],
    }


def method(blocks: tuple[Block, ...]) -> MethodSpec:
    return MethodSpec(
        name="fake",
        title="Fake divergence",
        summary="How far the fake moved.",
        config=MethodConfig,
        run=lambda config, context: None,  # type: ignore[arg-type, return-value]
        figures=lambda result: {},
        section=lambda result: Section("Fake section", blocks),
        headline=lambda result: Section("Fake section"),
    )
