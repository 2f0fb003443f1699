"""Which text a pair is read on."""

import pytest

from diffing.cli import settings_from
from diffing.pipeline.planning import plan_pair_spec

OF_THE_ORGANISM = "science-of-finetuning/tulu-3-sft-olmo-2-mixture-generated-gemma3_1B-caps"


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ([], "embedded:caps/training"),
        (["null_pair=identical"], "embedded:caps/training"),
        (["model=gemma3_1B", "null_pair=identical"], OF_THE_ORGANISM),
        (["null_pair=identical", "organism_variant=full"], "embedded:caps/training"),
    ],
)  # fmt: skip
def test_a_null_pair_reads_what_the_default_pair_on_its_base_reads(options, training):
    _, found = plan_pair_spec(settings_from(options))
    assert found is not None
    assert found.id == training
