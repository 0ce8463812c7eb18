"""Plain arrays for ArviZ 0.x and 1.x; these tests also run without torch."""

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

mpl.use("agg")

ROOT = Path(__file__).parents[2] / "probsl"
# Makes the packages' folders importable without what their own modules import.
BARE = f"""
import sys, types
for folder in ("", "data", "export"):
    package = types.ModuleType(".".join(filter(None, ["probsl", folder])))
    package.__path__ = [{str(ROOT)!r} + "/" + folder]
    sys.modules[package.__name__] = package
"""
if importlib.util.find_spec("torch") is None:
    exec(BARE)
from_groups = importlib.import_module("probsl.export.inference_data").from_groups

MODERN = int(version("arviz").split(".")[0]) >= 1
DRAWS, ROWS = 200, 30


def arviz():
    """Return ArviZ, whose older version announces the newer one."""
    from_groups({})
    import arviz

    return arviz


def log_normal(value, mean):
    return -0.5 * (value - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def groups(slope=1.0, draws=DRAWS):
    """Draws around a regression with two columns and an effect of three groups."""
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, 2))
    w = slope + 0.05 * random.standard_normal((draws, 2))
    effect = random.standard_normal((draws, 3))
    y = x @ np.ones(2) + random.standard_normal(ROWS)
    mean = w @ x.T
    return {
        "posterior": {"w": ((None,), w), "effect": (("groups",), effect)},
        "posterior_predictive": {
            "y": (("data",), mean + random.standard_normal(mean.shape))
        },
        "log_likelihood": {"y": (("data",), log_normal(y, mean))},
        "log_prior": {
            "w": ((), log_normal(w, 0.0).sum(1)),
            "effect": (("groups",), log_normal(effect, 0.0)),
        },
        "sample_stats": {"lp": ((), log_normal(y, mean).sum(1))},
        "prior": {"w": ((None,), random.standard_normal((50, 2)))},
        "observed_data": {"y": (("data",), y)},
        "constant_data": {"x": (("data", None), x)},
    }


def dataset(data, group):
    return data[group].to_dataset() if MODERN else data[group]


def names_of_groups(data):
    return set(data.children) if MODERN else set(data.groups())


def test_the_container_is_that_of_the_installed_version():
    data = from_groups(groups(), attrs={"": {"method": "SVI()"}})
    kind = xr.DataTree if MODERN else arviz().InferenceData
    assert isinstance(data, kind)
    assert names_of_groups(data) == set(groups())
    assert data.attrs == {"method": "SVI()"}


def test_draws_are_one_chain_and_data_have_none():
    data = from_groups(groups())
    posterior = dataset(data, "posterior")
    assert posterior["w"].dims == ("chain", "draw", "w_dim_0")
    assert posterior["effect"].dims == ("chain", "draw", "groups")
    assert posterior["w"].shape == (1, DRAWS, 2)
    assert list(posterior["draw"].values) == list(range(DRAWS))
    assert dataset(data, "prior")["w"].shape == (1, 50, 2)
    assert dataset(data, "log_prior")["w"].dims == ("chain", "draw")
    assert dataset(data, "log_likelihood")["y"].dims == ("chain", "draw", "data")
    assert dataset(data, "constant_data")["x"].dims == ("data", "x_dim_0")
    assert list(dataset(data, "constant_data")["x_dim_0"].values) == [0, 1]


def test_a_point_is_one_draw():
    data = from_groups(groups(draws=1))
    assert dataset(data, "posterior")["w"].shape == (1, 1, 2)


@pytest.mark.parametrize("kind", ["float64", "float32", "int64", "bool"])
def test_values_and_their_types_are_kept(kind):
    value = np.array([[1, 0, 1], [0, 1, 1]]).astype(kind)
    arrays = {
        "posterior": {"z": ((None,), value)},
        "constant_data": {"c": ((), value[0, 0])},
    }
    data = from_groups(arrays)
    assert dataset(data, "posterior")["z"].dtype == kind
    assert dataset(data, "constant_data")["c"].dtype == kind
    np.testing.assert_array_equal(dataset(data, "posterior")["z"].values[0], value)


def test_attributes_belong_to_their_groups():
    data = from_groups(groups(), attrs={"prior": {"left_out": "effect"}})
    assert dataset(data, "prior").attrs == {"left_out": "effect"}
    assert dataset(data, "posterior").attrs == {}


def test_names_for_axes_and_their_labels():
    data = from_groups(
        groups(),
        dims={"w": ["column"], "x": ["column"]},
        coords={"column": ["age", "weight"]},
        labels={"groups": np.array(["a", "b", "c"])},
    )
    posterior = dataset(data, "posterior")
    assert posterior["w"].dims == ("chain", "draw", "column")
    assert list(posterior["column"].values) == ["age", "weight"]
    assert list(posterior["groups"].values) == ["a", "b", "c"]
    assert list(dataset(data, "log_prior")["groups"].values) == ["a", "b", "c"]
    assert dataset(data, "constant_data")["x"].dims == ("data", "column")


def test_the_labels_of_the_user_come_first():
    labels = {"groups": np.array(["a", "b", "c"])}
    data = from_groups(groups(), labels=labels, coords={"groups": [10, 20, 30]})
    assert list(dataset(data, "posterior")["groups"].values) == [10, 20, 30]


def test_a_dimension_may_bear_the_name_of_a_variable_of_another_group():
    data = from_groups(groups(), dims={"w": ["x"]})
    assert dataset(data, "posterior")["w"].dims == ("chain", "draw", "x")


def test_a_plate_that_bears_a_name_in_use_gets_another():
    arrays = {
        "posterior": {
            "a": (("a",), np.zeros((4, 3))),
            "b": (("draw",), np.zeros((4, 2))),
        }
    }
    posterior = dataset(from_groups(arrays, coords={"a_dim": [5, 6, 7]}), "posterior")
    assert posterior["a"].dims == ("chain", "draw", "a_dim")
    assert posterior["b"].dims == ("chain", "draw", "draw_dim")
    assert list(posterior["a_dim"].values) == [5, 6, 7]


def test_scopes_are_no_groups():
    arrays = {"posterior": {"net/w": (("net/rows", None), np.zeros((4, 3, 2)))}}
    posterior = dataset(from_groups(arrays), "posterior")
    assert posterior["net.w"].dims == ("chain", "draw", "net.rows", "net.w_dim_0")


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"dims": {"v": ["a"]}}, ValueError, "dims names 'v', which is not a variable"),
        ({"dims": {"w": "a"}}, TypeError, "dims\\['w'\\] must be a list of names"),
        ({"dims": {"w": ["a", "b"]}}, ValueError, "length 2, but 'w' has 1 axes"),
        ({"dims": {"effect": ["a"]}}, ValueError, "length 1, but 'effect' has 0 axes"),
        ({"dims": {"w": ["draw"]}}, ValueError, "has the name 'draw'"),
        ({"dims": {"w": ["effect"]}}, ValueError, "has the name 'effect'"),
        ({"dims": {"x": ["data"]}}, ValueError, "has the name 'data'"),
        (
            {"dims": {"w": ["groups"]}},
            ValueError,
            "'groups' has 2 entries in 'w' and 3",
        ),
        (
            {"coords": {"v": [1]}},
            ValueError,
            "coords names 'v', which is not a dimension",
        ),
        ({"coords": {"groups": [1]}}, ValueError, "length 1, but .* 3 entries"),
        ({"coords": {"groups": "abc"}}, ValueError, "length 1, but .* 3 entries"),
        ({"coords": {"groups": 3}}, ValueError, "length 1, but .* 3 entries"),
        (
            {"coords": {"groups": [["a"], ["b"], ["c"]]}},
            ValueError,
            "coords\\['groups'\\] has 2 axes, .* give one per entry",
        ),
        ({"dims": {"w": 3}}, TypeError, "dims\\['w'\\] must be a list of names"),
        ({"dims": ["column"]}, TypeError, "dims must map variables to names"),
        ({"coords": ["a"]}, TypeError, "coords must map dimensions to labels"),
    ],
)
def test_a_wrong_name_or_length_gets_a_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        from_groups(groups(), **options)


def test_a_site_with_the_name_of_the_dimension_of_draws_is_refused():
    arrays = {"posterior": {"draw": ((), np.zeros(4))}}
    with pytest.raises(ValueError, match="site 'draw' has the name of a dimension"):
        from_groups(arrays)


def test_a_file_holds_everything(tmp_path):
    az, path = arviz(), tmp_path / "fit.nc"
    attrs = {"": {"seed": 3, "method": "SVI()"}, "prior": {"left_out": "effect"}}
    data = from_groups(groups(), attrs=attrs, coords={"groups": ["a", "b", "c"]})
    data.to_netcdf(str(path), engine="h5netcdf")
    read = az.from_netcdf(str(path), engine="h5netcdf")
    for group in groups():
        before, after = dataset(data, group), dataset(read, group).load()
        xr.testing.assert_equal(before, after)
        assert {n: v.dtype for n, v in before.items()} == {
            n: v.dtype for n, v in after.items()
        }
    assert read.attrs["seed"] == 3
    assert dataset(read, "prior").attrs["left_out"] == "effect"
    read.close()


def test_arviz_summarizes_it(caplog):
    az = arviz()
    with caplog.at_level(logging.CRITICAL, "arviz"):
        table = az.summary(from_groups(groups()), kind="stats", round_to="none")
    assert list(table.index) == [
        "w[0]",
        "w[1]",
        "effect[0]",
        "effect[1]",
        "effect[2]",
    ]
    expected = groups()["posterior"]["w"][1].mean(0)
    np.testing.assert_allclose(table["mean"].to_numpy()[:2].astype(float), expected)


def test_arviz_scores_it():
    """Leave-one-out of a Normal mean with a flat prior has a closed form."""
    random = np.random.default_rng(1)
    y = random.standard_normal(ROWS)
    mu = y.mean() + random.standard_normal(4000) / np.sqrt(ROWS)
    density = log_normal(y, mu[:, None])
    arrays = {
        "posterior": {"mu": ((), mu)},
        "log_likelihood": {"y": (("data",), density)},
    }
    found = arviz().loo(from_groups(arrays), pointwise=True)
    elpd = found.elpd_i if MODERN else found.loo_i
    others = (y.sum() - y) / (ROWS - 1)
    variance = 1 + 1 / (ROWS - 1)
    exact = log_normal((y - others) / np.sqrt(variance), 0) - 0.5 * np.log(variance)
    # The largest of 30 errors: each is about 0.3 / sqrt(4000), 0.005, or less.
    np.testing.assert_allclose(elpd, exact, atol=0.03)


@pytest.mark.filterwarnings(
    # ArviZ 0.23 sorts its table in a way that pandas 4 will not have.
    "ignore:The inplace keyword in DataFrame.sort_values is deprecated"
)
def test_arviz_compares_it():
    near, far = from_groups(groups()), from_groups(groups(slope=0.0))
    table = arviz().compare({"far": far, "near": near})
    assert list(table.index) == ["near", "far"]


def test_arviz_weighs_the_prior():
    az, data = arviz(), from_groups(groups())
    found = az.psense(data) if MODERN else az.psens(data, component="prior")
    assert np.isfinite(found["w"].values).all()


@pytest.mark.filterwarnings(
    # ArviZ 1.x puts one draw and many side by side.
    "ignore:In a future version of xarray the default value for join:FutureWarning"
)
def test_arviz_draws_it():
    import matplotlib.pyplot as plt

    az = arviz()
    point, distribution = from_groups(groups(draws=1)), from_groups(groups())
    if MODERN:
        az.plot_forest({"point": point, "distribution": distribution})
        az.plot_ppc_dist(distribution, num_samples=10)
        az.plot_prior_posterior(distribution, var_names=["w"])
    else:
        az.plot_forest([point, distribution], model_names=["point", "distribution"])
        az.plot_ppc(distribution, num_pp_samples=10)
        az.plot_dist_comparison(distribution, var_names=["w"])
    plt.close("all")


def test_it_needs_no_torch_and_no_pyro():
    code = (
        f"{BARE}\n"
        "import numpy\n"
        "from probsl.export import inference_data\n"
        "loaded = {'arviz', 'xarray'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "inference_data.from_groups({'posterior': {'a': ((), numpy.zeros(4))}})\n"
        "loaded = {'torch', 'pyro'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(MODERN, reason="ArviZ 1.x has nothing to announce")
def test_the_announcement_of_the_next_arviz_is_no_error(tmp_path):
    code = (
        f"{BARE}\n"
        "import numpy\n"
        "from probsl.export import inference_data\n"
        "inference_data.from_groups({'posterior': {'a': ((), numpy.zeros(4))}})\n"
    )
    # It is made once a day, as told by a file in this directory.
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    subprocess.run(command, check=True, env=environment)
