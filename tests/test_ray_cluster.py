"""A suite on a local cluster of two nodes gives the rows that one process gives."""

import json

import pytest
import torch
from conftest import run_vdu

from vdu.bench.runner import Worker, run_suite
from vdu.bench.suite import read_suite, result_path

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SUITE = """model = "mnist"
targets = ["1", "3"]
seeds = [0]
samples = 100
sampler_steps = 2
[methods.ga]
method = "ga"
settings = {steps = 1, batch_size = 2, guard_every_steps = 0}
"""
MEASURED_ANEW = ("seconds", "threads")


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(SUITE)
    return read_suite(str(path))


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one processor each: two workers of one thread have to be on different ones."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a machine that is busy starves the workers
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def worker(suite):
    """One of this process, with one thread as those of the cluster."""
    threads = torch.get_num_threads()
    yield Worker(suite, 1)
    torch.set_num_threads(threads)


def _figures(result):
    return {key: value for key, value in result["row"].items() if key not in MEASURED_ANEW}


def test_rows_of_two_nodes_are_those_of_one_process(suite, cluster, worker, tmp_path):
    run_suite(suite, tmp_path, None, 2, lambda _: None, cluster.address)
    assert [node["Alive"] for node in ray.nodes()] == [True, True]
    for run in suite.runs():
        made = json.loads(result_path(tmp_path, suite, run).read_text())
        assert made["row"]["threads"] == 1
        assert _figures(made) == _figures(worker.make(run).result)


def test_no_cluster_at_the_address_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "two.toml").write_text(SUITE)
    words = ("bench", "run", tmp_path / "two.toml", "--results", tmp_path / "results", "--cluster", "127.0.0.1:1")
    code, _, err = run_vdu(monkeypatch, capsys, *words)
    assert code == 2
    assert "no Ray cluster at '127.0.0.1:1'" in err.strip().splitlines()[-1]
    assert not (tmp_path / "results").exists()
