"""The frontier of notebook 06: accuracy against numbers kept, and against the training that they needed."""

import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lthlib.evidence.style import BLACK, Chart, caption, chart, draw_means, error_bars, finish, need, style


def frontier_panels(rows: pd.DataFrame, best: pd.DataFrame, *, replicate: str = "seed", title: str = "") -> Chart:
    """Test error of every finder and density, mean and 95 % t interval, against the share of weights kept and against
    training FLOPs; those on the frontier of all three are ringed. All axes are logarithmic, the better end above.

    `rows` are those of `frontier_tables`, `best` what `frontier_tables.frontier` makes of them. Raises InputError for a
    column that is missing.
    """
    need(rows, "finder", "asked", "share", "flops", "accuracy", replicate)
    need(best, "share", "flops", "accuracy", "on_frontier")
    named, ringed = (
        part.assign(share=100 * part["share"], error=100 - part["accuracy"])
        for part in (rows, best[best["on_frontier"]])
    )
    with style():
        figure, panels = chart(columns=2, width=10.4, height=4.6)
        counts: set[int] = set()
        for axes, x in zip(panels, ("share", "flops"), strict=True):
            counts |= draw_means(
                axes, named, x, "error", "finder", replicate, error_bars, group="asked", log=True, joined=1.2
            )
            axes.plot(
                ringed[x], ringed["error"], "o", markersize=13, markerfacecolor="none", markeredgecolor=BLACK,
                markeredgewidth=0.9, linestyle="none", label="on the frontier",
            )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        panels[0].xaxis.set_major_formatter(plain)
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(plain)
        panels[0].yaxis.set_minor_locator(NullLocator())
        # Both panels share it.
        panels[0].invert_yaxis()
        panels[0].set(xlabel="weights kept, % of the network's (log scale)", ylabel="test error, % (log scale)")
        panels[1].set_xlabel("training FLOPs, layers weighed by density (log scale)")
        panels[0].set_title(title)
        below = " Ringed: no other mean is as accurate with no more weights and no more FLOPs."
        finish(figure, panels, "", caption(counts, replicate) + below)
    return figure
