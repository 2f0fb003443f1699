"""An example of evidence as a heat map."""

from diffing.core.blocks import Heatmap, HeatToken
from diffing.core.evidence import ExampleEvidence


def example_heatmap(example: ExampleEvidence, before: str = "") -> Heatmap:
    """An example as a heat map on its own scale: highlighted stretches, and the text between them."""
    tokens, at = [], 0
    for span in sorted(example.spans, key=lambda s: s.start):
        if span.start > at:
            tokens.append(HeatToken(example.text[at : span.start], None))
        tokens.append(HeatToken(example.text[span.start : span.end], span.value))
        at = max(at, span.end)
    tokens.append(HeatToken(example.text[at:], None))
    top = max((s.value for s in example.spans if s.value is not None), default=0.0)
    title = f"{before}{example.dataset or ''} {example.score:.3g}".strip()
    return Heatmap(title, tuple(t for t in tokens if t.text), top, "")
