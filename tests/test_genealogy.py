import numpy as np
import pytest

import fastsmc as fs
from fastsmc import genealogy


def data_of():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 3)).astype(np.float32)
    return x, (x @ rng.normal(size=(3, 2))).argmax(axis=1)


def sampler(kind=fs.SMC, **options):
    return kind(fs.Posterior(fs.MLP([3, 4, 2])), 16, move=fs.HMC(3), seed=2, **options)


@pytest.fixture(scope="module")
def result():
    return sampler(annealing=fs.LikelihoodTempering()).run(*data_of(), progress=False)


def made_up(iterations, count, seed):
    """Parents as resampling leaves them, every third time none."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, count, (iterations, count), dtype=np.int32)
    drawn[::3] = np.arange(count)
    return tuple(drawn)


@pytest.mark.parametrize("options", [{}, {"waste_free": 4}, {"resampling": "multinomial", "ess_threshold": 1.0}])
def test_parents_are_those_that_the_history_counts(options):
    found = sampler(annealing=fs.LikelihoodTempering(), **options).run(*data_of(), progress=False)
    founders = np.arange(16)
    assert len(found.genealogy) == len(found.history) > 3
    for parents, row in zip(found.genealogy, zip(*found.history.values(), strict=True), strict=True):
        said = dict(zip(found.history, row, strict=True))
        founders = founders[parents]
        assert parents.dtype == np.int32 and parents.shape == (16,)
        assert len(np.unique(parents)) == said["distinct_ancestors"]
        assert len(np.unique(founders)) == said["distinct_roots"]
        assert said["resampled"] or np.array_equal(parents, np.arange(16))
    assert genealogy.with_descendants(found.genealogy)[0].sum() == found.history.distinct_roots[-1]


def test_where_nothing_moves_a_particle_is_its_parent():
    """Steps too small to change a bit of the weights show which particle came from where."""
    smc = sampler(annealing=fs.LikelihoodTempering())
    smc.move = fs.HMC(1, step_size=1e-30)
    before = smc.posterior.sample_prior(16, 2)
    for state in smc.iterate(*data_of()):
        np.testing.assert_array_equal(state.particles, before[state.genealogy[-1]])
        before = state.particles


def test_states_are_left_alone_and_files_keep_them(result, tmp_path):
    states = list(sampler(annealing=fs.LikelihoodTempering()).iterate(*data_of()))
    assert [len(state.genealogy) for state in states] == list(range(1, len(states) + 1))
    result.save(tmp_path / "r.safetensors")
    loaded = fs.load(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(np.stack(loaded.genealogy), np.stack(result.genealogy))
    assert loaded.settings == result.settings and result.settings["move"].startswith("HMC(")


def test_particles_of_several_iterations_have_none(result):
    assert sampler(fs.PersistentSMC).run(*data_of(), progress=False).genealogy is None
    assert fs.recycle([result, result]).genealogy is None


@pytest.mark.parametrize(("iterations", "count"), [(1, 1), (1, 7), (12, 9), (30, 40)])
def test_lines_do_not_cross(iterations, count):
    parents = made_up(iterations, count, seed=count)
    rank, alive = genealogy.order(parents), genealogy.with_descendants(parents)
    place = genealogy.places(parents, rank, alive)
    for t in range(iterations + 1):
        assert np.array_equal(np.sort(rank[t]), np.arange(count))
        assert (np.diff(place[t, np.argsort(rank[t])]) >= 0).all()
    for t in range(iterations):
        assert (np.diff(rank[t, parents[t][np.argsort(rank[t + 1])]]) >= 0).all()


def test_descendants_are_those_of_the_last_generation():
    parents = made_up(12, 9, seed=0)
    line, alive = np.arange(9), genealogy.with_descendants(parents)
    assert alive[12].all()
    for t in range(11, -1, -1):
        line = parents[t][line]
        assert np.array_equal(np.flatnonzero(alive[t]), np.unique(line))


def segments(lines):
    return {tuple(row) for row in np.c_[lines.generation.reshape(-1, 3)[:, :2], lines.place.reshape(-1, 3)[:, :2]]}


def test_every_particle_has_a_line_to_its_parent():
    parents = made_up(12, 9, seed=0)
    rank, alive = genealogy.order(parents), genealogy.with_descendants(parents)
    place = genealogy.places(parents, rank, alive)
    leading, ended = map(segments, genealogy.lineages(parents))
    for t, row in enumerate(parents):
        for child, parent in enumerate(row):
            line = (t, t + 1, place[t, parent], place[t + 1, child])
            assert (line in leading, line in ended) == (alive[t + 1, child], not alive[t + 1, child])
    assert len(leading) + len(ended) == 12 * 9


def test_of_many_lineages_whole_ones_are_drawn():
    parents = made_up(30, 40, seed=3)
    every, some = ([segments(part) for part in genealogy.lineages(parents, most)] for most in (1200, 300))
    assert all(few < many for few, many in zip(some, every, strict=True))
    assert sum(t == 30 for _, t, *_ in some[0]) == 10  # of the last generation every fourth
    ends = {(t, place) for t, _, place, _ in some[0]}
    assert all((t, place) in ends or t == 30 for _, t, _, place in some[0]), "a dark line ends early"
