"""Sweeps on Ray: what a lost node had is run on another, and what cannot work is said first."""

import sys
from pathlib import Path
from typing import Any

import pytest

from lthlib.errors import InputError
from lthlib.workbook import ray_engine
from lthlib.workbook.ray_engine import progress_on_ray
from lthlib.workbook.run import Task

SLOW = Path(__file__).parents[1] / "fixtures" / "notebooks" / "slow.ipynb"


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray, which is not installed .* or --engine local"):
        next(progress_on_ray([]))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster of two nodes of one core each, both on this machine."""
    pytest.importorskip("ray", reason="Ray is an optional extra and not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        made.add_node(num_cpus=1, include_dashboard=False)
        made.second = made.add_node(num_cpus=1)
        made.wait_for_nodes()
    except Exception as error:  # Ray gives its nodes a fixed half minute to start and raises a bare Exception
        made.shutdown()
        pytest.skip(f"Ray starts no cluster here: {error}")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own: unclosed sockets and files of the nodes that are killed here
def test_a_node_is_killed_and_the_sweep_finishes(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"asks for 1 CPU and 2 GPU, which no node of the cluster has"):
        next(progress_on_ray([], address=cluster.address, gpus_per_run=2))
    tasks = [Task(SLOW, {"seconds": 4.0 + number}, f"results/{number}/slow") for number in range(4)]
    ended, killed = {}, False
    for task, outcome in progress_on_ray(tasks, address=cluster.address):
        if outcome is not None:
            ended[task.out_dir] = outcome
        running = [one for one in tasks if ray_engine._executing(one)]
        if not killed and len(running) == 2:
            cluster.remove_node(cluster.second, allow_graceful=False)
            killed = True
    assert killed
    assert {name: (outcome.status, outcome.reason) for name, outcome in ended.items()} == {
        task.out_dir: ("done", "") for task in tasks
    }
    assert all((tmp_path / task.out_dir / "manifest.json").is_file() for task in tasks)
