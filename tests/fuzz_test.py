"""The quick form of benchmarks/hostile/fuzz.py."""

import pytest

from benchmarks.hostile import fuzz

EXAMPLES = 40


@pytest.mark.parametrize("prop", fuzz.PROPERTIES, ids=lambda p: p.__name__)
def test_it_holds_for_whatever_is_drawn(prop):
  fuzz.run(prop, EXAMPLES, repeatable=True)
