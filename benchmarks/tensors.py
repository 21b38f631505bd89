"""Masks, basis transforms and subset sums by themselves, beside torch.nn.utils.prune, scipy.fft and scipy's solver.

The limit of a mask is one copy of its scores at this machine's memory bandwidth; that of a transform, its arithmetic as
two dense products at the rate of a large one; subset sums have none but the plain compiled search of
`benchmarks/subset_sum.py`.
"""

import numpy as np
import torch
from limits import bandwidth, gemm_rate
from reporting import Row, parser, report, timing
from scipy.fft import dctn
from subset_sum import by_itertools, by_milp
from subset_sum import plain as plain_search
from torch import nn
from torch.nn.utils import prune

from lthlib.basis import bases
from lthlib.masks.topk import keep_top
from lthlib.randomness import generator
from lthlib.theory.subset_sum.solve import solve


def mask_row(side: int, layers: int, repeats: int) -> Row:
    """A global mask of 5 % of square layers' weights, ranked by magnitude."""
    weights = {f"{k}": torch.randn(side, side, generator=generator(k, "benchmark")) for k in range(layers)}
    count = layers * side**2

    def ours() -> object:
        return keep_top({name: weight.abs() for name, weight in weights.items()}, count // 20)

    def plain() -> object:
        modules = [nn.Linear(side, side, bias=False) for _ in weights]
        for module, weight in zip(modules, weights.values(), strict=True):
            module.weight = nn.Parameter(weight)
        pairs = [(module, "weight") for module in modules]
        return prune.global_unstructured(pairs, prune.L1Unstructured, amount=count - count // 20)

    ours()
    limit = 8 * count / bandwidth(8 if side < 100 else 256) / 1e9
    return Row(
        f"global mask of {count:,} weights", timing(ours, repeats).wall, "s", limit, None, timing(plain, repeats).wall
    )


def transform_row(side: int, repeats: int) -> Row:
    """A square matrix into the DCT's coefficients along both axes."""
    weight = torch.randn(side, side, generator=generator(0, "benchmark"))
    basis = bases("dct", {"weight": (side, side)})["weight"]
    basis.analyse(weight)
    seconds = timing(lambda: basis.analyse(weight), repeats).wall
    plain = timing(lambda: dctn(weight.numpy(), norm="ortho"), repeats).wall
    limit = 4 * side**3 / gemm_rate(min(side, 2048)) / 1e9
    return Row(f"DCT of a {side} x {side} matrix, both axes", seconds, "s", limit, None, plain)


def subset_rows(count: int, repeats: int) -> list[Row]:
    """Best subsets of n = 15 and n = 21 candidates, solves a second."""
    rows, rng = [], np.random.default_rng(0)
    for n, reference, few, label in ((15, by_itertools, 3, "itertools"), (21, by_milp, 2, "scipy.optimize.milp")):
        a, z = rng.uniform(-1, 1, (count, n)), rng.uniform(-1, 1, count)
        solve(a[:100], z[:100])
        plain_search(a[:20], z[:20])
        ours = count / timing(lambda a=a, z=z: solve(a, z), repeats).wall
        limit = (count // 10) / timing(lambda a=a, z=z: plain_search(a[: count // 10], z[: count // 10]), repeats).wall
        pairs = list(zip(a[:few], z[:few], strict=True))
        slow = few / timing(lambda pairs=pairs, one=reference: [one(*pair) for pair in pairs], 1).wall
        rows.append(Row(f"best subset of {n}, beside compiled search and {label}", ours, "solves/s", limit, None, slow))
    return rows


def main() -> None:
    """Prints all rows."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tiny", action="store_true", help="small tensors and few sums, for correctness only")
    tiny = (options := arguments.parse_args()).tiny
    repeats = 1 if tiny else 5
    rows = [mask_row(64 if tiny else 1936, 4, repeats), transform_row(64 if tiny else 1024, repeats)]
    report(rows + subset_rows(200 if tiny else 20_000, repeats), options.json)


if __name__ == "__main__":
    main()
