"""Which pairs and methods a benchmark runs."""

from diffing.core.method import load_method, method_names
from diffing.core.settings import BenchmarkConfig
from diffing.evaluation import suite
from diffing.evaluation.suite import LADDER, methods_of

DEFAULT, QUICK = BenchmarkConfig(), BenchmarkConfig(size="quick")


def cases(config):
    return suite.cases(config, ("a", "b", "c"))


def works(method):
    return load_method(method).work


def test_every_organism_is_judged_by_two_nulls_on_its_own_text_before_it_runs():
    for config in (DEFAULT, QUICK, BenchmarkConfig(organisms=("mine", "mine+weak"))):
        listed = cases(config)
        for place, case in enumerate(listed):
            if case.role == "organism":
                before = [c for c in listed[:place] if c.text_of == case.text_of]
                assert {c.role for c in before} >= {"judge", "second judge"}
        assert len({(c.label, c.role) for c in listed}) == len(listed)


def test_quick_is_part_of_default():
    default, quick = ({(c.label, c.overrides) for c in cases(config)} for config in (DEFAULT, QUICK))
    assert quick < default
    assert {m for c in cases(QUICK) for m in methods_of(c, QUICK, ())} == {"kl", "diff_mining", "weight_spectrum"}


def test_nulls_are_of_four_kinds_and_judge_nothing():
    nulls = [c for c in cases(DEFAULT) if c.role == "null"]
    assert [c.label for c in nulls] == ["seeds", "dtype", "generic, 1 %", "generic, other seed"]
    assert "organism.null_adapter=['b']" in nulls[-1].overrides
    assert len([c for c in suite.cases(DEFAULT, ("a", "b")) if c.role == "null"]) == 3
    assert not [c for c in cases(QUICK) if c.role == "null"]
    assert all(any(w.startswith("null_pair=") for w in c.overrides) for c in nulls)


def test_dear_methods_run_on_few_pairs_and_one_pass_methods_on_all():
    listed = cases(DEFAULT)
    run = {c.label: methods_of(c, DEFAULT, ()) for c in listed}
    one_pass = {m for m in method_names() if works(m) == "reading"}
    assert all(one_pass <= set(methods) for methods in run.values())
    generating = [label for label, methods in run.items() if any(works(m) == "generating" for m in methods)]
    training = [c.role for c in listed if any(works(m) == "training" for m in run[c.label])]
    assert len(generating) == 6
    assert sorted(training) == ["judge", "organism", "organism"]


def test_the_ladder_is_in_the_suite_from_strong_to_faint():
    labels = [c.label for c in cases(DEFAULT)]
    assert [label for label in labels if label in LADDER] == list(LADDER)


def test_chosen_methods_and_organisms_alone():
    config = BenchmarkConfig(organisms="rainy_tea")
    listed = cases(config)
    assert [c.label for c in listed if c.role == "organism"] == ["rainy_tea"]
    run = {c.role: methods_of(c, config, ("kl", "crosscoder")) for c in listed}
    both = ["kl", "crosscoder"]
    assert run == {"judge": both, "organism": both, "second judge": ["kl"], "null": ["kl"]}


def test_organisms_of_ones_own_and_the_null_that_judges_them_are_run_with_every_method():
    config = BenchmarkConfig(organisms=("mine", "caps"))
    listed = [c for c in cases(config) if c.role in ("organism", "judge")]
    assert [c.label for c in listed] == ["generic, text of mine", "generic, text of caps", "mine", "caps"]
    assert all(methods_of(c, config, ()) == method_names() for c in listed)


def test_a_variant_with_a_text_of_its_own_is_judged_on_that_text():
    config = BenchmarkConfig(organisms=("two", "two+b", "two+c"))
    listed = suite.cases(config, (), {"two+b"})
    assert {c.label: c.text_of for c in listed if c.role == "organism"} == {
        "two": "two",
        "two+b": "two+b",
        "two+c": "two",
    }
    (judge,) = (c for c in listed if c.role == "judge" and c.text_of == "two+b")
    assert judge.overrides == ("organism=two", "organism_variant=b", "null_pair=generic")
    assert [c.text_of for c in listed if c.role == "second judge"] == ["two", "two+b"]


def test_a_variant_is_asked_for_by_name():
    (case,) = (c for c in cases(DEFAULT) if c.label == "roman_concrete+1to4")
    assert case.overrides == ("organism=roman_concrete", "organism_variant=1to4")
    assert case.text_of == "roman_concrete"
