"""Plots show the numbers of the fits, and leave matplotlib as they found it."""

import warnings
from functools import cache
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from methods import ADAM, Pair, fitted
from programs import problem
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import probsl
from probsl.plots.canvas import STYLE, canvas
from probsl.plots.elements import Element
from probsl.plots.losses import descents
from probsl.plots.predictive import Shown, prediction
from probsl.plots.prior_posterior import panels
from probsl.plots.priors import priors
from probsl.plots.shrinkage import shrinkage


@pytest.fixture(autouse=True)
def agg():
    """Draw on nothing, whatever the machine has; no test leaves a figure open."""
    backend = mpl.get_backend()
    mpl.use("agg")
    yield
    left = plt.get_fignums()
    plt.close("all")
    mpl.use(backend)
    assert left == [], "the test left a figure open"


@pytest.fixture
def ax():
    """Axes that pyplot knows nothing of."""
    return Figure().subplots()


@cache
def fits_of(name):
    case = problem(name)
    methods = {
        "MLE": probsl.MLE(integrate=()),
        "MAP": probsl.MAP(),
        "SVI": probsl.SVI(AutoNormal),
    }
    return {n: probsl.fit(case.program, case.data, m) for n, m in methods.items()}


def wide(x, y=None):
    with pyro.plate("columns", x.shape[1]):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@cache
def wide_fit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 50, generator=generator, dtype=torch.float64)
    return probsl.fit(wide, {"x": x, "y": x[:, 0]}, probsl.MAP())


def line(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", a + b * x)
        pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


LINE = {"x": np.array([2.0, 0.5, 1.0, 0.5]), "y": np.array([2.5, 0.0, 1.5, 1.0])}


@cache
def line_fit():
    return probsl.fit(line, LINE, probsl.SVI())


PLOTS = {
    "forest": lambda **k: probsl.plot_forest(fits_of("linear"), **k),
    "shrinkage": lambda **k: probsl.plot_shrinkage(fits_of("linear"), **k),
    "losses": lambda **k: probsl.plot_losses(fits_of("linear"), **k),
    "prior_posterior": lambda **k: probsl.plot_prior_posterior(fits_of("linear"), **k),
    "one prior_posterior": lambda **k: probsl.plot_prior_posterior(
        fits_of("linear"), ["sigma"], **k
    ),
    "predictive": lambda **k: probsl.plot_predictive(line_fit(), LINE, **k),
}
every_plot = pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)


@every_plot
def test_axes_in_are_axes_out_and_pyplot_notices_nothing(plot, ax):
    before = dict(mpl.rcParams)
    assert plot(ax=ax) is ax
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@every_plot
def test_without_axes_there_is_one_new_figure_in_the_style(plot):
    before = dict(mpl.rcParams)
    made = plot()
    assert plt.get_fignums() == [made.figure.number]
    assert not made.spines["top"].get_visible() or not made.axison
    assert dict(mpl.rcParams) == before
    # Nothing is so placed that the layout gives up.
    made.figure.canvas.draw()
    plt.close(made.figure)


def test_a_figure_is_closed_where_drawing_fails():
    def draw():
        with canvas(None, 3.0, 2.0):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draw()


def test_the_style_is_one_of_matplotlib():
    with plt.style.context(STYLE):
        assert mpl.rcParams["axes.spines.top"] is False


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: probsl.plot_forest({}), ValueError, "fits is empty"),
        (lambda: probsl.plot_losses({"a": 1}), TypeError, r"fits\['a'\] is a int"),
        (lambda: probsl.plot_losses([1]), TypeError, "mapping from names to fits"),
        (
            lambda: probsl.plot_forest(fits_of("linear"), sites=["sigm"]),
            ValueError,
            "did you mean 'sigma'",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), sites="sigma"),
            TypeError,
            "sites must be several names",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), sites=[]),
            ValueError,
            "sites is empty",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), prob=95),
            ValueError,
            "prob must lie between 0 and 1",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), prob="95%"),
            TypeError,
            "prob must be a number between 0 and 1, got '95%'",
        ),
        (
            lambda: probsl.plot_shrinkage(fits_of("linear"), "map"),
            ValueError,
            "reference 'map' names none of the fits .* did you mean 'MAP'",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, x=0),
            TypeError,
            "x must be a name, .* got 0",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, y=1),
            TypeError,
            "y must be a name, .* got 1",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, prob=1.5),
            ValueError,
            "prob must lie between 0 and 1",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, at={"x": 1.0}),
            ValueError,
            "at holds 'x', which is the input along which to plot",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, at=[1.0]),
            TypeError,
            "at must map inputs to values",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), labels={"v": "weight"}),
            ValueError,
            "labels has 'v', which is not shown",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), labels=["v"]),
            TypeError,
            "labels must map labels to texts",
        ),
        (
            lambda: probsl.plot_shrinkage(fits_of("linear"), by="row"),
            ValueError,
            "by must be 'element' or 'site'",
        ),
        (
            lambda: probsl.plot_forest(fits_of("linear"), sites=["v"], by="site"),
            ValueError,
            "'v' is not a site of the fits",
        ),
        (
            lambda: probsl.plot_shrinkage(fits_of("linear")["MLE"]),
            ValueError,
            "give at least two",
        ),
        (
            lambda: probsl.plot_shrinkage(fits_of("linear"), "OLS"),
            ValueError,
            "'OLS' names none of the fits",
        ),
        (
            lambda: probsl.plot_shrinkage({"a": line_fit(), "b": wide_fit()}),
            ValueError,
            "share sites",
        ),
        (
            lambda: probsl.plot_prior_posterior({"a": line_fit(), "b": wide_fit()}),
            ValueError,
            "different programs",
        ),
        (
            lambda: probsl.plot_predictive({"a": line_fit()}, LINE),
            TypeError,
            "must be a Fit",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, "z"),
            ValueError,
            "'z' is not an input .* there are: x",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, y="z"),
            ValueError,
            "'z' is not an outcome of the program",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, y="a"),
            ValueError,
            "'a' is not an outcome of the program",
        ),
        (
            lambda: probsl.plot_predictive(line_fit(), LINE, y="y[1]"),
            ValueError,
            r"'y\[1\]' cannot be drawn: 'obs' has one value per row",
        ),
        (
            lambda: probsl.plot_predictive(
                fits_of("mixed model")["MAP"], problem("mixed model").data
            ),
            ValueError,
            r"x=, one of: x\[0\], x\[1\], group",
        ),
    ],
)
def test_errors_are_sentences_and_make_no_figure(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
    assert plt.get_fignums() == []


@every_plot
@pytest.mark.parametrize("wrong", ["left", 3, np.empty(2, dtype=object)])
def test_what_is_no_axes_is_refused(plot, wrong):
    with pytest.raises(TypeError, match="ax must be matplotlib Axes"):
        plot(ax=wrong)


def markers(ax):
    """Return the drawn points by their label."""
    return {
        handle.get_label(): handle.get_xdata()
        for handle in ax.get_legend_handles_labels()[0]
    }


def test_a_forest_shows_estimates_and_intervals(ax):
    fits = fits_of("linear")
    probsl.plot_forest(fits, prob=0.8, ax=ax)
    shown = markers(ax)
    assert list(shown) == list(fits)
    for name, fit in fits.items():
        assert shown[name] == pytest.approx(fit.summary()["estimate"].to_numpy())
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    for collection, fit in zip(lines, fits.values(), strict=True):
        ends = np.array([segment[:, 0] for segment in collection.get_segments()])
        table = fit.summary(0.8)
        assert ends == pytest.approx(table[["lower", "upper"]].to_numpy())
    assert [t.get_text() for t in ax.get_yticklabels()] == list(table.index)
    assert ax.get_xlabel() == "estimate and 80% interval"
    low, high = ax.get_ylim()
    assert low > high, "the first parameter is on top"


def test_a_comparison_or_one_fit_can_be_plotted(ax):
    fits = fits_of("linear")
    probsl.plot_forest(probsl.compare(fits), ax=ax)
    assert list(markers(ax)) == list(fits)
    probsl.plot_forest(fits["MAP"], ax=Figure().subplots())


def test_fits_may_have_different_parameters(ax):
    fits = {"a": line_fit(), "b": fits_of("linear")["MLE"]}
    probsl.plot_forest(fits, ax=ax)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == ["a", "b", "w[0]", "w[1]", "sigma"]
    assert np.isnan(markers(ax)["a"]).tolist() == [False, False, True, True, True]


def test_sites_and_elements_can_be_named(ax):
    probsl.plot_forest(fits_of("linear"), sites=["sigma", "w[1]"], ax=ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["w[1]", "sigma"]


def test_of_many_parameters_the_first_are_shown_and_the_plot_says_so():
    some, every = (
        probsl.plot_forest(wide_fit(), sites=sites) for sites in (None, ["w"])
    )
    assert len(some.get_yticks()) == 40
    assert "(first 40 of 50 parameters)" in some.get_xlabel()
    assert len(every.get_yticks()) == 50
    assert every.get_xlabel() == "estimate and 95% interval"
    assert every.figure.get_figheight() > some.figure.get_figheight()
    plt.close("all")


def test_elements_are_called_as_in_the_summary(ax):
    for name in ("own parameters", "simplex", "noncentered groups"):
        fit = fits_of(name)["SVI"]
        axes = probsl.plot_forest(fit, ax=Figure().subplots())
        labels = [t.get_text() for t in axes.get_yticklabels()]
        assert labels == list(fit.summary(by="element").index)


def test_shrinkage_is_that_of_the_comparison(ax):
    comparison = probsl.compare(fits_of("linear"))
    probsl.plot_shrinkage(comparison, ax=ax)
    shown = markers(ax)
    assert list(shown) == ["MAP", "SVI"]
    for name, moved in shown.items():
        expected = comparison.shrinkage[name, "moved / sd"].to_numpy()
        assert moved == pytest.approx(expected)
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    for collection, moved in zip(lines, shown.values(), strict=True):
        ends = np.array([segment[:, 0] for segment in collection.get_segments()])
        assert ends[:, 0].tolist() == [0.0] * len(moved)
        assert ends[:, 1] == pytest.approx(moved)
    assert ax.get_xlabel() == "moved from MLE, in standard deviations"


def test_shrinkage_has_the_reference_of_the_comparison_or_the_one_named():
    comparison = probsl.compare(fits_of("linear"), reference="MAP")
    assert shrinkage(comparison, None, None).reference == "MAP"
    named = shrinkage(comparison, "SVI", None)
    assert named.reference == "SVI"
    assert list(named.moved.columns) == ["MLE", "MAP"]


def test_shrinkage_without_a_spread_is_in_the_parameters_units(ax):
    # Points where the steps ran out have no standard errors.
    case = problem("linear")
    fits = {
        name: probsl.fit(case.program, case.data, method)
        for name, method in {
            "MLE": probsl.MLE(optimizer=torch.optim.Adam, max_steps=3),
            "MAP": probsl.MAP(optimizer=torch.optim.Adam, max_steps=5),
        }.items()
    }
    probsl.plot_shrinkage(fits, ax=ax)
    tables = [fit.summary()["estimate"].to_numpy() for fit in fits.values()]
    assert markers(ax)["MAP"] == pytest.approx(tables[1] - tables[0])
    assert ax.get_xlabel() == "moved from MLE, in the parameter's own unit"


def test_shrinkage_says_which_parameters_it_cannot_measure(ax):
    fits = {"SVI": fits_of("own parameters")["SVI"]}
    fits["MAP"] = fitted(Pair("MAP Adam", problem("own parameters")))
    probsl.plot_shrinkage(fits, ax=ax)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    spread = fits["SVI"].summary()["sd"]
    assert labels == [n for n in spread.index if spread[n] > 0]
    count = len(spread) - len(labels)
    assert f"{count} left out, without a reference or a spread" in ax.get_xlabel()


def test_a_fit_looks_the_same_in_every_plot():
    looks = []
    for plot in (probsl.plot_forest, probsl.plot_shrinkage):
        axes = plot(fits_of("linear"), ax=Figure().subplots())
        handles = axes.get_legend_handles_labels()[0]
        looks.append({h.get_label(): (h.get_color(), h.get_marker()) for h in handles})
    assert looks[1].items() < looks[0].items()
    assert len(set(looks[0].values())) == 3


def test_losses_are_shown_above_their_lowest(ax):
    fits = fits_of("linear")
    probsl.plot_losses(fits, ax=ax)
    for (name, fit), drawn in zip(fits.items(), ax.lines, strict=True):
        losses = np.asarray(fit.losses)
        above = losses > losses.min()
        assert drawn.get_xdata()[above] == pytest.approx(1 + np.flatnonzero(above))
        assert drawn.get_ydata()[above] == pytest.approx((losses - losses.min())[above])
        assert np.isnan(drawn.get_ydata()[~above]).all()
        assert drawn.get_label() == f"{name} (lowest {losses.min():.6g})"


def test_noisy_losses_have_a_trend():
    case = problem("linear")
    method = probsl.SVI(AutoNormal, optimizer=ADAM, max_steps=400)
    noisy = probsl.fit(case.program, case.data, method)
    drawn = descents({"exact": fits_of("linear")["MAP"], "noisy": noisy})
    assert len(drawn["exact"].trend[0]) == 0
    steps, trend = drawn["noisy"].trend
    gap = drawn["noisy"].gap
    assert 1 <= steps[0] < steps[-1] <= len(gap)
    # The last window is a mean of the last losses.
    count = round(2 * (len(gap) - steps[-1]) + 1)
    losses = np.asarray(noisy.losses)[-count:] - drawn["noisy"].lowest
    assert trend[-1] == pytest.approx(losses.mean(), rel=1e-9)
    assert probsl.plot_losses(noisy, ax=Figure().subplots()).get_xscale() == "linear"


def test_losses_that_are_not_finite_are_refused_in_a_sentence():
    fit = fits_of("linear")["MAP"]
    broken = probsl.Fit(
        **{**vars(fit), "losses": torch.full((3,), torch.nan), "steps": 3}
    )
    with pytest.raises(ValueError, match="fit 'MAP' has no finite losses"):
        probsl.plot_losses({"MAP": broken})


def test_a_prior_is_the_density_of_the_program(ax):
    fits = fits_of("linear")
    probsl.plot_prior_posterior(fits, ["sigma"], ax=ax)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    grid, density = handles["prior"].get_data()
    expected = np.where(grid < 0, 0.0, np.exp(-np.maximum(grid, 0.0)))
    assert density == pytest.approx(expected, abs=1e-6)
    for name in ("MLE", "MAP"):
        assert handles[name].get_xdata()[0] == float(fits[name].point()["sigma"])
    heights, edges, _ = handles["SVI"].get_data()
    draws = np.asarray(fits["SVI"].draw(4000)["sigma"])
    expected, _ = np.histogram(draws, edges)
    assert heights == pytest.approx(expected / (4000 * np.diff(edges)), rel=1e-9)
    assert ax.get_xlabel() == "sigma"


def test_several_parameters_have_panels_of_their_own(ax):
    probsl.plot_prior_posterior(fits_of("linear"), ax=ax)
    assert [p.get_xlabel() for p in ax.child_axes] == ["w[0]", "w[1]", "sigma"]
    assert ax.get_legend() is not None
    assert not ax.axison


def test_more_than_twelve_panels_are_for_sites_that_are_named(ax):
    probsl.plot_prior_posterior(wide_fit(), ax=ax)
    assert len(ax.child_axes) == 12
    assert [t.get_text() for t in ax.texts] == ["(first 12 of 50 parameters)"]
    drawn, note = panels(wide_fit(), ["w"])
    assert (len(drawn), note) == (50, "")


def test_a_prior_that_depends_on_others_is_drawn_from_the_program(ax):
    probsl.plot_prior_posterior(fits_of("centered groups"), ["theta[0]"], ax=ax)
    assert "prior" in ax.get_legend_handles_labels()[1]
    drawn, _ = panels(fits_of("centered groups"), ["theta[0]"])
    edges, density = drawn[0].prior_histogram
    assert drawn[0].prior is None
    # mu has sd 5, and tau mean 1 and square 1.5: most of the mass is outside here.
    low, high = edges[0], edges[-1]
    inside = (density * np.diff(edges)).sum()
    expected = dist.Normal(0.0, (25 + 1.5) ** 0.5).cdf(torch.tensor([low, high])).diff()
    # Binomial error of 4000 draws, to five of which a normal is near enough.
    assert inside == pytest.approx(float(expected), abs=5 * 0.5 / 4000**0.5)


def test_a_joint_prior_is_drawn_and_a_deterministic_has_one_too():
    simplex, _ = panels(fits_of("simplex"), None)
    assert all(p.prior is None and p.prior_histogram is not None for p in simplex)
    for panel in simplex:
        edges, density = panel.prior_histogram
        assert (density * np.diff(edges)).sum() <= 1 + 1e-9
    theta, _ = panels(fits_of("noncentered groups"), ["theta"])
    assert all(p.prior_histogram is not None for p in theta)


def test_an_improper_prior_is_left_out(ax):
    def flat(y=None):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probsl.fit(flat, {"y": torch.tensor([1.0, 2.0, 3.0])}, probsl.MAP())
    probsl.plot_prior_posterior(fit, ax=ax)
    assert ax.get_legend_handles_labels()[1] == ["MAP"]


def test_own_parameters_are_points_without_a_prior():
    own, _ = panels(fits_of("own parameters"), ["shift"])
    assert own[0].label == "shift (own)"
    assert own[0].prior is own[0].prior_histogram is None
    assert list(own[0].points) == ["MLE", "MAP", "SVI"]
    assert own[0].histograms == {}


def test_a_point_far_outside_is_an_arrowhead(ax):
    fits = fits_of("linear")
    away = probsl.MLE(max_steps=1, start={"w": [900.0, -900.0], "sigma": 1e3})
    case = problem("linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far = probsl.fit(case.program, case.data, away)
    far.posterior.values["w"] = torch.tensor([900.0, -900.0], dtype=torch.float64)
    probsl.plot_prior_posterior({"far": far, "SVI": fits["SVI"]}, ["w"], ax=ax)
    heads = [panel.lines[-1] for panel in ax.child_axes]
    assert [h.get_marker() for h in heads] == [">", "<"]
    assert all(abs(end) < 50 for panel in ax.child_axes for end in panel.get_xlim())


def test_distributions_made_outside_a_program_draw_in_its_floating_type():
    prior = dist.Normal(0.0, 2.0)  # of float32

    def program(x, y=None):
        w = pyro.sample("w", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    fit = probsl.fit(program, LINE, probsl.MAP())
    found = priors(fit)
    assert found.draws["w"].dtype == torch.float64
    density = found.density(Element("w", 0, "w"), np.array([0.0]))
    assert density == pytest.approx([1 / (2 * (2 * np.pi) ** 0.5)], rel=1e-6)


def test_bands_are_quantiles_of_means_and_of_new_values(ax):
    grid = {"x": np.linspace(0.0, 3.0, 7)}
    probsl.plot_predictive(line_fit(), grid, ax=ax)
    table = line_fit().expected(grid, draws=2000)
    names = (("predictive_lower", "predictive_upper"), ("lower", "upper"))
    for band, limits in zip(ax.collections, names, strict=True):
        corners = band.get_paths()[0].vertices
        for x, low, high in zip(grid["x"], *(table[n] for n in limits), strict=True):
            heights = np.unique(corners[corners[:, 0] == x, 1])
            assert heights[[0, -1]] == pytest.approx([low, high])
    assert [c.get_label() for c in ax.collections] == [
        "95% of new values",
        "95% of the mean",
    ]
    (middle,) = ax.lines
    assert middle.get_ydata() == pytest.approx(table["mean"].to_numpy())
    assert middle.get_label() == "mean"


def test_data_are_dots_and_equal_inputs_are_one_point(ax):
    probsl.plot_predictive(line_fit(), LINE, ax=ax)
    middle, dots = ax.lines
    assert middle.get_xdata().tolist() == [0.5, 1.0, 2.0]
    assert dots.get_xdata().tolist() == LINE["x"].tolist()
    assert dots.get_ydata().tolist() == LINE["y"].tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


def test_a_deterministic_site_has_its_own_band_and_no_new_values():
    (mean,) = prediction(line_fit(), LINE, Shown(y="mean")).curves
    (outcome,) = prediction(line_fit(), LINE, Shown()).curves
    assert mean.new is None
    assert mean.middle == pytest.approx(outcome.middle)
    assert np.asarray(mean.band) == pytest.approx(np.asarray(outcome.band))


def test_a_point_has_a_band_of_its_mean_if_it_has_standard_errors():
    data = problem("mixed model").data
    for method, has in (("MAP", True), ("MLE", False)):
        fit = fits_of("mixed model")[method]
        assert fit.summary()["sd"].notna().all() == has
        (curve,) = prediction(fit, data, Shown("x[1]")).curves
        assert (curve.band is not None) == has
        assert curve.new is not None


@pytest.mark.parametrize("at", [None, {"x[0]": 0.5, "group": 1}])
def test_other_inputs_are_held(at, ax):
    data = problem("mixed model").data
    fit = fits_of("mixed model")["MAP"]
    drawn = prediction(fit, data, Shown("x[1]", at=at))
    columns, groups = np.asarray(data["x"]), np.asarray(data["group"])
    first = columns[:, 0].mean() if at is None else 0.5
    group = np.bincount(groups.astype(int)).argmax() if at is None else 1
    grid = np.linspace(columns[:, 1].min(), columns[:, 1].max(), 200)
    x = np.stack([np.full(200, first), grid], 1)
    expected = fit.expected({**data, "x": x, "group": np.full(200, group)})["mean"]
    assert drawn.curves[0].middle == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert drawn.held["group"] == str(group)
    assert ("x[0]" in drawn.held) is (at is not None)  # it is a column of ones
    probsl.plot_predictive(fit, data, "x[1]", at=at, ax=ax)
    assert f"group = {group}" in ax.get_xlabel()


def test_groups_have_one_bar_each():
    data = problem("centered groups").data
    drawn = prediction(fits_of("centered groups")["SVI"], data, Shown())
    assert drawn.x.tolist() == [0, 1, 2]
    assert drawn.groups == {0: "0", 1: "1", 2: "2"}


def test_groups_bear_the_names_of_their_categories(ax):
    group = pd.Series(["b", "a", "b", "c"], dtype="category")
    data = {"group": group, "y": np.array([1.0, 0.0, 1.5, 3.0])}
    fit = probsl.fit(problem("centered groups").program, data, probsl.SVI(AutoNormal))
    probsl.plot_predictive(fit, data, ax=ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert all(isinstance(c, LineCollection) for c in ax.collections)


def test_yes_or_no_has_a_probability_and_no_new_values():
    data = problem("logistic").data
    fit = fits_of("logistic")["SVI"]
    (curve,) = prediction(fit, data, Shown()).curves
    assert curve.new is None
    assert curve.label == "mean"
    expected = fit.expected(data, draws=2000)
    order = np.argsort(np.asarray(data["x"])[:, 1])
    assert curve.middle == pytest.approx(expected["mean"].to_numpy()[order])
    assert curve.band[1] == pytest.approx(expected["upper"].to_numpy()[order])


def classes(x, species=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("species", dist.Categorical(logits=x @ w), obs=species)


def test_classes_have_a_probability_each_and_never_a_mean_of_their_codes(ax):
    species = pd.Series([*"cabcab"], dtype="category")
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 2)), columns=["a", "b"])
    data = {"x": x, "species": species}
    fit = probsl.fit(classes, data, probsl.SVI())
    drawn = prediction(fit, data, Shown("b"))
    assert [curve.label for curve in drawn.curves] == ["a", "b", "c"]
    total = sum(curve.middle for curve in drawn.curves)
    assert total == pytest.approx(np.ones(200))
    assert drawn.observed is None
    probsl.plot_predictive(fit, data, "b", ax=ax)
    assert ax.get_ylabel() == "probability of species"
    assert ax.get_xlabel().startswith("b\n(with a = ")
    one = prediction(fit, data, Shown("b", "species[c]"))
    assert one.curves[0].middle == pytest.approx(drawn.curves[2].middle)


def test_an_outcome_without_a_mean_is_drawn_at_its_median():
    def heavy(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Cauchy(slope * x, 0.1), obs=y)

    fit = probsl.fit(heavy, LINE, probsl.MAP())
    drawn = prediction(fit, LINE, Shown(draws=2000))
    (curve,) = drawn.curves
    assert curve.label == "median"
    expected = drawn.x * float(fit.point()["slope"])
    # Five standard errors of a median of 2,000 draws from a Cauchy of scale 0.1.
    assert curve.middle == pytest.approx(expected, abs=5 * 0.1 * np.pi / 2 / 2000**0.5)


def test_a_program_of_fixed_size_is_drawn_at_as_many_points_as_it_has_rows():
    def fixed(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(6, 2)), "y": rng.normal(size=6)}
    fit = probsl.fit(fixed, data, probsl.MAP())
    assert len(prediction(fit, data, Shown("x[1]")).x) == 6


def test_one_of_several_outcomes_is_chosen_by_its_column():
    data = problem("LKJ covariance").data
    fit = fits_of("LKJ covariance")["MAP"]
    drawn = prediction(fit, data, Shown("x", "y[1]"))
    assert drawn.y_label == "y[1]"
    assert drawn.observed[1] == pytest.approx(np.asarray(data["y"])[:, 1])
    with pytest.raises(ValueError, match=r"2 columns; name one of them, from 'y\[0\]'"):
        prediction(fit, data, Shown("x", "y"))


def twice(x, y=None):
    """Two columns that are the same, and one that separates the outcomes."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@cache
def undetermined_fits():
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[:, 2] = x[:, 1]
    data = {"x": x, "y": x[:, 0]}
    far = {"w": [0.0, 5e3, -5e3]}
    methods = {"MLE": probsl.MLE(start=far), "MAP": probsl.MAP()}
    return {name: probsl.fit(twice, data, m) for name, m in methods.items()}


@pytest.mark.parametrize("plot", [probsl.plot_forest, probsl.plot_shrinkage])
def test_estimates_without_meaning_are_hollow_and_clipped(plot, ax):
    fits = undetermined_fits()
    assert fits["MLE"].status is probsl.Status.UNIDENTIFIED
    estimates = fits["MLE"].point()["w"]
    assert float(estimates[1].abs()) > 100
    plot(fits, ax=ax)
    hollow = [line for line in ax.lines if line.get_gid() == "hollow"]
    assert [len(line.get_xdata()) for line in hollow] == [2]
    low, high = ax.get_xlim()
    assert max(abs(low), abs(high)) < 10
    assert all(low <= x <= high for x in hollow[0].get_xdata())
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[-1] == "hollow: not determined by the data (clipped)"


def test_estimates_with_meaning_are_not_hollow(ax):
    probsl.plot_forest(fits_of("linear"), ax=ax)
    assert not [line for line in ax.lines if line.get_gid() == "hollow"]
    assert "hollow" not in str([t.get_text() for t in ax.get_legend().get_texts()])


@cache
def network_fits():
    def network(x, y=None):
        first = pyro.sample("first", dist.Normal(0.0, 1.0).expand([3, 400]).to_event(2))
        last = pyro.sample("last", dist.Normal(0.0, 0.05).expand([400]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.tanh(x @ first) @ last, 0.5), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    data = {"x": x, "y": x[:, 0] * x[:, 1]}
    methods = {"MLE": probsl.MLE(max_steps=20), "MAP": probsl.MAP(max_steps=20)}
    return {name: probsl.fit(network, data, m) for name, m in methods.items()}


def test_a_forest_of_a_network_has_one_row_per_site(ax):
    fits = network_fits()
    probsl.plot_forest(fits, ax=ax)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == ["first [3, 400]", "last [400]"]
    medians = [float(fits["MLE"].point()[n].median()) for n in ("first", "last")]
    assert markers(ax)["MLE"] == pytest.approx(medians, abs=1e-3)
    ends = np.quantile(fits["MLE"].point()["last"], [0.025, 0.975])
    assert ax.collections[0].get_segments()[1][:, 0] == pytest.approx(ends)


def test_shrinkage_of_a_network_has_one_row_per_site(ax):
    fits = network_fits()
    probsl.plot_shrinkage(fits, ax=ax)
    moved = fits["MAP"].point()["last"] - fits["MLE"].point()["last"]
    assert markers(ax)["MAP"][1] == pytest.approx(float(moved.square().mean().sqrt()))
    assert "root mean square over each site" in ax.get_xlabel()


def test_a_few_elements_of_a_network_can_be_asked_for(ax):
    probsl.plot_forest(network_fits(), sites=["last[0]", "last[1]"], ax=ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["last[0]", "last[1]"]


def test_rows_have_the_labels_of_the_user(ax):
    probsl.plot_forest(fits_of("linear"), labels={"sigma": "noise"}, ax=ax)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert "noise" in labels
    assert "sigma" not in labels


@every_plot
def test_every_plot_has_a_title_and_an_alternative_text(plot):
    ax = plot(title="What the prior did")
    legend = ax.get_legend()
    assert legend.get_title().get_text() == "What the prior did"
    ax.figure.canvas.draw()
    assert legend.get_window_extent().y1 <= ax.figure.bbox.y1
    assert len(ax.get_label().split()) > 4
    plt.close(ax.figure)


@pytest.mark.parametrize(
    "plot",
    [
        probsl.plot_forest,
        probsl.plot_shrinkage,
        probsl.plot_prior_posterior,
        probsl.plot_losses,
    ],
)
def test_a_figure_has_the_size_of_the_user(plot):
    figure = plot(fits_of("linear"), figsize=(5.0, 4.5)).figure
    assert figure.get_size_inches().tolist() == [5.0, 4.5]
    plt.close(figure)


def test_tick_labels_and_notes_do_not_overlap():
    data = {"y": 123456.0 + np.array([1.0, 2.0, 3.0])}

    def many(y=None):
        m = pyro.sample("m", dist.Normal(123456.0, 3.0).expand([14]).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(m.mean(), 1.0), obs=y)

    ax = probsl.plot_prior_posterior(probsl.fit(many, data, probsl.SVI()))
    ax.figure.canvas.draw()
    boxes = []
    for panel in ax.child_axes:
        ticks = [t for t in panel.get_xticklabels() if t.get_text()]
        inside = [
            t.get_window_extent()
            for t, at in zip(ticks, panel.get_xticks(), strict=True)
            if panel.get_xlim()[0] <= at <= panel.get_xlim()[1]
        ]
        for one, other in pairwise(inside):
            assert one.x1 <= other.x0
        boxes += [*inside, panel.xaxis.label.get_window_extent()]
    (note,) = ax.texts
    assert note.get_text() == "(first 12 of 14 parameters)"
    assert not any(note.get_window_extent().overlaps(box) for box in boxes)
    plt.close(ax.figure)


def long_names(x, y=None):
    prior = dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1)
    w = pyro.sample("coefficients_of_socioeconomic_background_variables", prior)
    with pyro.plate("observations", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@cache
def long_fits():
    data = problem("linear").data
    methods = {
        "maximum likelihood estimation": probsl.MLE(),
        "maximum a posteriori, normal prior": probsl.MAP(),
        "stochastic variational inference, full rank": probsl.SVI(),
    }
    return {n: probsl.fit(long_names, data, m) for n, m in methods.items()}


@pytest.mark.parametrize(
    "plot",
    [
        probsl.plot_forest,
        probsl.plot_shrinkage,
        probsl.plot_losses,
        probsl.plot_prior_posterior,
    ],
)
def test_long_names_are_neither_cut_off_nor_on_top_of_each_other(plot):
    axes = plot(long_fits())
    figure = axes.figure
    figure.canvas.draw()
    frame = figure.bbox
    frames = axes.child_axes or [axes]
    labels = [f.xaxis.label.get_window_extent() for f in frames]
    legend = axes.get_legend().get_window_extent()
    ticks = [t for t in axes.get_yticklabels() if "coefficients" in t.get_text()]
    for box in (*labels, legend, *(t.get_window_extent() for t in ticks)):
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1
    for one, other in pairwise(labels):
        assert not one.overlaps(other)
    plt.close(figure)


def test_a_fit_that_began_at_its_lowest_is_a_mark_at_the_bottom(ax):
    fit = fits_of("linear")["MAP"]
    still = probsl.Fit(**{**vars(fit), "losses": fit.losses[-1:]})
    probsl.plot_losses({"still": still, "MAP": fit}, ax=ax)
    mark = ax.lines[0]
    assert (mark.get_marker(), mark.get_xdata(), mark.get_ydata()) == ("v", [1], [0])
    assert ax.get_xscale() == "linear", "a length of one is none"
    low, high = ax.get_ylim()
    assert high / low >= 1e3


def test_overlapping_posteriors_have_edges_of_their_own(ax):
    fit = fits_of("linear")["SVI"]
    probsl.plot_prior_posterior({"one": fit, "two": fit}, ["sigma"], ax=ax)
    filled = [p.get_fill() for p in ax.patches]
    assert sorted(filled) == [False, False, True, True]
