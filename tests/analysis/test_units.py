"""Units of work cover a plan once, in order, and are of similar size."""

import numpy as np
import pytest
from safetensors.numpy import save

from diffing.analysis.units import MOST_UNITS, cut_into_units, read_unit
from diffing.data.batches import plan_batches


@pytest.mark.parametrize("n", [1, 7, 400])
def test_units_cover_the_plan_once_in_order(n):
    lengths = np.random.default_rng(n).integers(2, 257, n).tolist()
    plan = plan_batches(lengths, 512)
    units = cut_into_units(plan, lengths, 512)
    assert [batch for unit in units for batch in unit] == list(plan)
    assert len(units) <= MOST_UNITS
    sizes = [sum(lengths[i] for batch in unit for i in batch) for unit in units]
    goal = max(512, sum(lengths) / MOST_UNITS)
    assert all(goal <= size < goal + 512 for size in sizes[:-1])


def test_the_number_of_units_is_chosen():
    lengths = [10] * 100
    plan = [(i,) for i in range(100)]
    assert len(cut_into_units(plan, lengths, 10)) == 50
    assert len(cut_into_units(plan, lengths, 10, most_units=4)) == 4
    assert cut_into_units(plan[:1], lengths[:1], 2048) == [[(0,)]]


def test_a_unit_that_is_not_whole_is_none(tmp_path):
    path, arrays = tmp_path / "unit.safetensors", {"a": np.arange(3), "b": np.ones((2, 2))}
    assert read_unit(path, ("a", "b")) is None
    path.write_bytes(save(arrays))
    found = read_unit(path, ("b", "a"))
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2]
    assert read_unit(path, ("a",)) is None
    assert read_unit(path, ("a", "b", "c")) is None
    path.write_bytes(path.read_bytes()[:-5])
    assert read_unit(path, ("a", "b")) is None
