"""Functions of other libraries, replaced wherever they are and put back."""

from importlib import import_module

import pytest

import fastsmc as fs
from fastsmc import integrations, ops


@pytest.mark.parametrize("library", ["blackjax", "particles"])
def test_accelerate_replaces_and_restores(library):
    resampling = {"blackjax": "blackjax.smc.resampling", "particles": "particles.resampling"}[library]
    module = pytest.importorskip(resampling)
    if library == "blackjax":
        pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    theirs = {scheme: getattr(module, scheme) for scheme in ops.SCHEMES}
    with pytest.raises(KeyError), fs.accelerate(library) as replaced:
        assert {f"{resampling}.{scheme}" for scheme in ops.SCHEMES} <= set(replaced)
        assert all(getattr(module, scheme) is not theirs[scheme] for scheme in ops.SCHEMES)
        if library == "particles":
            assert module.rs_funcs["systematic"] is not theirs["systematic"]
            assert "particles.resampling.rs_funcs.systematic" in replaced
        raise KeyError
    assert all(getattr(module, scheme) is theirs[scheme] for scheme in ops.SCHEMES)
    if library == "particles":
        assert module.rs_funcs["systematic"] is theirs["systematic"]


def test_names_that_are_imported_elsewhere_are_replaced_too():
    pytest.importorskip("blackjax")
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    from blackjax.smc import pretuning

    theirs = pretuning.stratified
    with fs.accelerate("blackjax") as replaced:
        assert "blackjax.smc.pretuning.stratified" in replaced
        assert pretuning.stratified is not theirs
    assert pretuning.stratified is theirs


def test_a_library_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="library is 'numpy'; it must be one of 'blackjax', 'cuthbert', 'particles'"):
        fs.accelerate("numpy").__enter__()


@pytest.mark.parametrize("library", integrations.LIBRARIES)
def test_every_library_that_is_here_is_replaced_and_restored(library):
    package = {"tfp": "tensorflow_probability.substrates.jax", "cuthbert": "cuthbertlib"}.get(library, library)
    try:
        import_module(package)
    except (AttributeError, ImportError) as error:  # the first of a TensorFlow Probability that is older than JAX
        pytest.skip(f"{package} cannot be imported: {error}")
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    with fs.accelerate(library) as replaced:
        assert replaced
    with fs.accelerate(library) as again:
        assert again == replaced
