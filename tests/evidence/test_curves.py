import math
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lthlib.errors import InputError
from lthlib.evidence import curves as plots
from lthlib.evidence.claims import Claim, decide, ledger, mean_interval
from lthlib.evidence.style import PALETTE, looks

DENSITIES = (1.0, 0.41, 0.168, 0.069)


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "basis": basis,
            "seed": seed,
            "density": density,
            "accuracy": 98 + loss * math.log(density) + rng.normal(0, 0.1),
            "level": level,
        }
        for basis, loss in (("canonical", 0.3), ("dct", 0.2), ("random", 0.6))
        for seed in range(4)
        for level, density in enumerate(DENSITIES)
    )


def line(axes, label):
    return next(one for one in axes.get_lines() if one.get_label() == label)


def texts(figure):
    found = [figure._supxlabel.get_text()] if figure._supxlabel else []
    found = [" ".join(text.split()) for text in found]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_accuracy_curve_draws_means_of_replicates(frame):
    figure = plots.accuracy_curve(frame, dense=[98.0, 98.2, 98.1])
    (axes,) = figure.axes
    drawn = line(axes, "dct")
    means = frame[frame.basis == "dct"].groupby("density").accuracy.mean()
    assert list(drawn.get_xdata()) == list(means.index) and drawn.get_ydata() == pytest.approx(means.to_numpy())
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    interval = mean_interval(frame[(frame.basis == "dct") & (frame.density == 1)].accuracy.to_numpy())
    assert interval.low == pytest.approx(band[np.abs(band - interval.low).argmin()])
    assert axes.get_xlabel() == "density: weights kept, % (log scale)" and axes.get_ylabel() == "test accuracy (%)"
    assert axes.xaxis_inverted() and [label.get_text() for label in axes.get_xticklabels()] == [
        "6.9",
        "16.8",
        "41",
        "100",
    ]
    assert "Mean and 95 % t interval over n = 4 seeds." in texts(figure) and "dense (n = 3)" in texts(figure)


def test_two_rows_of_a_seed_are_one_replicate(frame):
    doubled = pd.concat([frame, frame.assign(accuracy=frame.accuracy + 1)])
    figure = plots.accuracy_curve(doubled)
    assert "Mean and 95 % t interval over n = 4 seeds." in texts(figure)
    single = line(plots.accuracy_curve(frame).axes[0], "dct").get_ydata()
    assert line(figure.axes[0], "dct").get_ydata() == pytest.approx(single + 0.5)


def test_one_seed_says_that_it_has_no_interval(frame):
    figure = plots.accuracy_curve(frame[frame.seed == 0])
    assert "n = 1 seed, so that there is no interval." in texts(figure)
    uneven = frame[(frame.seed < 2) | (frame.basis == "dct")]
    assert "Mean and 95 % t interval over n = 2 to 4 seeds." in texts(plots.accuracy_curve(uneven))


def test_panels_and_their_own_dense_bands(frame):
    both = pd.concat([frame.assign(dataset="digits"), frame.assign(dataset="mnist", accuracy=frame.accuracy - 5)])
    figure = plots.accuracy_curve(both, panel="dataset", dense={"digits": [98, 98.2], "mnist": [93, 93.4]}, title="Two")
    assert [axes.get_title("left") for axes in figure.axes] == ["digits", "mnist"]
    assert [line(axes, "dense (n = 2)").get_ydata()[0] for axes in figure.axes] == pytest.approx([98.1, 93.2])
    assert texts(figure).count("dct") == 1 and figure.get_suptitle() == "Two"


def test_achieved_densities_are_joined_by_level(frame):
    frame["density"] *= 1 + 0.01 * frame.seed
    drawn = line(plots.accuracy_curve(frame, group="level").axes[0], "dct")
    assert drawn.get_xdata() == pytest.approx([density * 1.015 for density in reversed(DENSITIES)])


def test_difference_curve_is_paired_by_seed(frame):
    figure = plots.difference_curve(frame, reference="canonical", margin=0.3)
    (axes,) = figure.axes
    wide = frame.pivot(index=["density", "seed"], columns="basis", values="accuracy")
    expected = (wide.dct - wide.canonical).groupby("density").mean()
    assert line(axes, "dct").get_ydata() == pytest.approx(expected.to_numpy())
    assert "canonical" not in texts(figure) and "margin ±0.3" in texts(figure)
    assert "Paired by seed. Mean and 95 % t interval over n = 4 seeds." in texts(figure)
    assert "difference to canonical" in axes.get_ylabel() and "percentage points" in axes.get_ylabel()
    ready = plots.difference_curve(frame.assign(accuracy=frame.accuracy - 98), margin=0.5)
    assert "canonical" in texts(ready)


def test_difference_to_an_arm_that_is_not_there_is_refused(frame):
    with pytest.raises(InputError, match=r"unknown basis 'haar'.*canonical, dct, random"):
        plots.difference_curve(frame, reference="haar")
    with pytest.raises(InputError, match="only 'dct'"):
        plots.difference_curve(frame[frame.basis == "dct"], reference="dct")


def test_law_draws_measurements_over_theory(frame):
    measured = frame.assign(error=1 / frame.density).rename(columns={"basis": "method"})
    theory = {"dct": lambda x: 1 / x, "bound": lambda x: 2 / x}
    figure = plots.law(measured, "density", "error", "method", theory=theory, x_label="density", y_label="error")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert line(axes, "theory: dct").get_color() == looks(["dct"])["dct"][0] != line(axes, "theory: bound").get_color()
    assert line(axes, "theory: bound").get_ydata() == pytest.approx(2 / line(axes, "theory: bound").get_xdata())


def test_law_counts_what_a_log_axis_cannot_show(frame):
    figure = plots.law(frame.assign(error=np.where(frame.density == 1, 0.0, 1.0)), "density", "error", "basis")
    assert any("3 means that are not positive are left out." in text for text in texts(figure))
    assert "measured" in texts(plots.law(frame, "density", "accuracy", log=False))


def test_bars_start_at_zero_only_when_asked(frame):
    one = frame[frame.density == 0.069]
    points = plots.bars(one, "basis", dense=[98, 98.1])
    assert points.axes[0].get_xlim()[0] > 50 and not points.axes[0].patches[1:]
    assert any("Dashed line and band: dense, n = 2." in text for text in texts(points))
    solid = plots.bars(one, "basis", zero=True)
    assert solid.axes[0].get_xlim()[0] <= 0 and len(solid.axes[0].patches) == 3
    assert [label.get_text() for label in solid.axes[0].get_yticklabels()] == ["canonical", "dct", "random"]


def test_layer_densities_keep_the_order_of_layers_and_count_empty_ones(frame):
    layers = pd.concat([frame.assign(layer=name, density=share) for name, share in (("conv1", 0.5), ("fc", 0.1))])
    layers.loc[(layers.layer == "fc") & (layers.basis == "dct"), "density"] = 0.0
    figure = plots.layer_densities(layers)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["conv1", "fc"]
    assert any("1 empty layer" in text for text in texts(figure))


def test_energy_compaction_has_the_gaussian_curve(frame):
    energy = frame.rename(columns={"density": "fraction"}).assign(energy=lambda table: table.fraction**0.3)
    figure = plots.energy_compaction(energy)
    gauss = line(figure.axes[0], "Gaussian (theory)")
    share = np.interp(0.1, gauss.get_xdata(), gauss.get_ydata())
    assert share == pytest.approx(0.439, abs=0.002) and gauss.get_ydata()[-1] == pytest.approx(1)
    assert "Gaussian (theory)" not in texts(plots.energy_compaction(energy, gaussian=False))


def test_matrix_writes_every_mean_and_orders_numbers():
    rows = [
        {"source": source, "target": target, "seed": seed, "gap": source - target + seed}
        for source in (20, 14)
        for target in (32, 14, 20)
        for seed in (-1, 0, 1)
        if source != target
    ]
    figure = plots.matrix(pd.DataFrame(rows), "source", "target", "gap", diverging=True)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["14", "20", "32"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["14", "20"]
    assert {text.get_text() for text in axes.texts} == {"−6.0\n±2.5", "−18.0\n±2.5", "6.0\n±2.5", "−12.0\n±2.5"}
    assert axes.images[0].norm.vmin == -axes.images[0].norm.vmax == -18
    assert any("Grey: not measured." in text for text in texts(figure))


def test_image_grid_shares_one_scale_and_shows_masks_in_black():
    figure = plots.image_grid(
        [np.full((4, 4), 2.0), np.full((4, 4), -3.0), np.ones((2, 4))], ["a", "b", "c"], columns=2
    )
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert {(image.norm.vmin, image.norm.vmax) for image in images[:3]} == {(-3.0, 3.0)}
    masks = plots.image_grid(np.random.default_rng(0).random((3, 5, 5)) < 0.3)
    assert masks.axes[0].images[0].get_cmap().name == "gray_r" and "Black: kept." in texts(masks)
    with pytest.raises(InputError, match="1 titles for 2 images"):
        plots.image_grid(np.ones((2, 3, 3)), ["a"])
    with pytest.raises(InputError, match=r"2-D arrays, at least one, not \[\(3,\)\]"):
        plots.image_grid([np.ones(3)])
    with pytest.raises(InputError, match="at least one"):
        plots.image_grid([])


@pytest.mark.parametrize(
    "draw", [plots.accuracy_curve, plots.difference_curve, plots.layer_densities, plots.energy_compaction, plots.bars]
)
def test_a_missing_column_is_named(draw, frame):
    with pytest.raises(InputError, match=r"unknown column '\w+'.*\(valid: seed"):
        draw(frame[["seed", "level"]])


def test_an_empty_frame_is_refused(frame):
    with pytest.raises(InputError, match="no rows"):
        plots.accuracy_curve(frame[frame.seed > 99])


def test_names_have_fixed_and_distinct_looks():
    assert looks(["canonical"])["canonical"] == looks(["dct", "canonical"])["canonical"]
    assert looks(["IMP"])["IMP"] == looks(["ticket"])["ticket"]
    many = looks(["canonical", "svd", *(f"arm {i}" for i in range(20))])
    assert len(set(many.values())) == 22
    assert len({colour for colour, _, _ in looks(["canonical", *"abcdef"]).values()}) == 7
    assert len({marker for _, marker, _ in looks(["canonical", "unheard of"]).values()}) == 2
    assert list(looks(["b", "a"])) == ["b", "a"]


def test_colours_are_seen_on_white():
    def luminance(colour):
        channels = np.array(mpl.colors.to_rgb(colour))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    assert all(1.05 / (luminance(colour) + 0.05) >= 2.2 for colour in PALETTE)


def test_figures_show_themselves_on_solid_white_and_leave_settings_alone(frame):
    before = dict(mpl.rcParams)
    shown = plots.accuracy_curve(frame)._repr_png_()
    assert dict(mpl.rcParams) == before
    corner = mpl.image.imread(BytesIO(shown))[0, 0]
    assert list(corner) == [1, 1, 1, 1]


def test_a_figure_laid_out_once_looks_as_matplotlib_saves_it(frame):
    own, wanted = plots.accuracy_curve(frame), plots.accuracy_curve(frame)
    contents = []
    for save in (own.savefig, lambda *args, **options: Figure.savefig(wanted, *args, **options), own.savefig):
        save(buffer := BytesIO(), format="png", dpi=150)
        contents.append(buffer.getvalue())
    assert contents[0] == contents[1] == contents[2]
    own.savefig(BytesIO(), format="svg", dpi=None)


def test_no_figure_stays_open(frame):
    from matplotlib import pyplot

    figures = [plots.accuracy_curve(frame), plots.bars(frame, "basis"), plots.image_grid(np.ones((2, 3, 3)))]
    assert len(figures) == 3 and pyplot.get_fignums() == []


def test_verdict_table_shows_every_record_and_is_the_same_each_time():
    claims = [Claim(f"GB-{i}", f"Sentence {i}.", "[paper]", "difference", "non-inferior", 0.3) for i in range(3)]
    samples = ([0.0, 0.1, 0.05, 0.02], [-1.0, -1.1, -0.9, -1.05], [0.2])
    records = ledger([decide(*pair) for pair in zip(claims, samples, strict=True)], "digits", "quick")
    html = plots.verdict_table(records).to_html()
    assert html == plots.verdict_table(records).to_html()
    for text in ("GB-0", "Sentence 1.", "✓ supported", "✗ not supported", "? inconclusive", "-1.01", "95 % interval"):
        assert text in html
    assert "nan" not in html.lower() and "None" not in html
    assert "<table" in plots.verdict_table([]).to_html()
