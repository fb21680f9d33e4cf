"""Random generators go back to where they were."""

import io
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.run import rng


def draw():
    """Return numbers from every generator; NumPy's and Python's Gaussians keep one in hand."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(),
        np.random.randint(2**31),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    )


def test_restored_generators_go_on_with_the_same_numbers():
    """Python, NumPy and torch draw after a restore what they drew after the capture."""
    rng.seed_all(1)
    draw()
    state = rng.capture()
    expected = [draw() for _ in range(3)]
    rng.seed_all(2)
    rng.restore(state)
    assert [draw() for _ in range(3)] == expected


def test_state_passes_through_a_file_without_pickle():
    """The state is saved, loaded with weights_only=True, and still gives the same numbers."""
    rng.seed_all(3)
    draw()
    file = io.BytesIO()
    torch.save(rng.capture(), file)
    expected = draw()
    file.seek(0)
    rng.restore(torch.load(file, weights_only=True))
    assert draw() == expected


def test_capture_disturbs_nothing():
    """Saving does not disturb training: a capture draws no number."""
    rng.seed_all(4)
    expected = draw()
    rng.seed_all(4)
    rng.capture()
    assert draw() == expected


@given(st.integers(0, 2**63 - 1))
def test_any_seed_can_be_used_and_repeats(seed):
    """Each seed that the options allow seeds every generator."""
    rng.seed_all(seed)
    first = draw()
    rng.seed_all(seed)
    assert draw() == first


@given(st.integers(0, 2**63 - 1), st.text(max_size=5))
def test_derived_seeds_are_seeds(seed, word):
    """A derived seed is a fixed function of its parts, within the range of seeds."""
    derived = rng.derive_seed(word, seed)
    assert 0 <= derived < 2**63
    assert rng.derive_seed(word, seed) == derived
    assert len({derived, rng.derive_seed(word, seed + 1), rng.derive_seed(word, seed + 2)}) == 3


def test_fresh_state_follows_from_its_parts():
    """A fork with another seed goes on with random numbers of its own, the same each time."""
    first, again, other = rng.fresh("fork", 1, 3), rng.fresh("fork", 1, 3), rng.fresh("fork", 2, 3)
    drawn = []
    for state in (first, again, other):
        rng.restore(state)
        drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2]


def test_derived_seeds_stay_what_they_are():
    """A resume with a later version of this program starts from the same weights."""
    assert rng.derive_seed("weights", 0) == 970112611501083485
