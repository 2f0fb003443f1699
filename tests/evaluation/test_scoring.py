"""What of a result is scored."""

from types import SimpleNamespace

import pytest

from diffing.core.evidence import Evidence, TextEvidence
from diffing.core.specs import ExpectedSpec
from diffing.evaluation.scoring import detection


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ((TextEvidence("a heron", prompt="Say"), TextEvidence("a stone", prompt="")), 0.5),
        ((TextEvidence("a heron", prompt=""), TextEvidence("latent 3 promotes: stone")), 1.0),
        ((TextEvidence("latent 3 promotes: heron"),), None),
        ((), None),
    ],
    ids=["written", "written and stated", "stated", "none"],
)
def test_texts_that_a_model_wrote_are_scored_and_statements_are_not(texts, share):
    result = SimpleNamespace(method="kl", measured_evidence=lambda: Evidence(texts=texts))
    found = detection(result, None, None, None, ExpectedSpec(phrases=("heron",)), 0)
    assert found.texts.value == share
