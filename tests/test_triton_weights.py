"""What only Triton's kernels of weights have: on a GPU, or under TRITON_INTERPRET=1 on tiny shapes."""

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import reference
from fastsmc.backends import INTERPRETED

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

import triton.language as tl  # noqa: E402

from fastsmc.kernels import fixed_scan, resample  # noqa: E402
from fastsmc.kernels.build import EXACT  # noqa: E402
from fastsmc.kernels.exponential import exp64  # noqa: E402
from fastsmc.kernels.rows import Cut  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = np.nan, np.inf


@triton.jit
def exponentials(x, y, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y + index, exp64(tl.load(x + index)))


def test_exponential_equals_the_reference_to_the_bit():
    rng = np.random.default_rng(0)
    x = -np.concatenate([rng.uniform(0, 712, 3000), rng.uniform(0, 1, 1000), 10.0 ** -rng.uniform(0, 20, 88)])
    x = np.append(x, [0.0, -0.0, -708.0, np.nextafter(-708.0, -INF), -745.0, -1e308, -INF, NAN])
    y = torch.full((len(x),), NAN, dtype=torch.float64, device=DEVICE)
    exponentials[(1,)](torch.tensor(x, device=DEVICE), y, BLOCK=len(x), **EXACT)
    assert np.array_equal(y.cpu().numpy(), reference.exp64(x), equal_nan=True)


def test_a_second_refinement_changes_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    weights, u = np.exp(6 * rng.standard_normal(100)), np.asarray(rng.random())
    monkeypatch.setattr(resample, "refinements", lambda n: 2)
    ours = torch.full((100,), -1, device=DEVICE)
    arrays = (torch.tensor(a, device=DEVICE) for a in (weights, u))
    resample.resample("systematic", False, *arrays, ours, Cut(alone=1, tile=16, parts=32))
    assert np.array_equal(ours.cpu().numpy(), fs.systematic(weights, u, backend="reference"))


@pytest.mark.parametrize("n", [1, 2, 3, 4096, 10**8, 2**28, 2**28 + 1, 2**30, 2**31 - 1])
def test_refinements_suffice(n):
    """The extremes of sums that n weights can have at the safe scale, in integers: f is the last scale or one below."""
    limit = 3 << 60
    safe = 61 - (n - 1).bit_length()  # of weights below 2^0
    for largest in (2**999, 2**1000 - 1):  # in units of 2^-1000
        for rest in (0, 2 ** (1000 - safe) - 1, largest):  # no mass, nearly one unit, all alike
            total = largest + (n - 1) * rest

            def mass(scale, largest=largest, rest=rest):
                return (largest << scale >> 1000) + (n - 1) * (rest << scale >> 1000)

            scale = safe
            for _ in range(fixed_scan.refinements(n)):
                scale = scale + 62 - (mass(scale) + n).bit_length()
            assert total > 0
            assert mass(scale - 1) < limit
            assert mass(scale + 1) >= limit
            assert mass(scale) < 2**63
