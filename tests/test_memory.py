"""The memory benchmark at a tiny size: real steps in fresh processes, and rows for what does not fit."""

import json

import pytest
from conftest import run_vdu

from vdu import VduError
from vdu.bench import memory
from vdu.bench.memory import run_memory
from vdu.bench.memory_modes import MODES


def _rows(folder):
    return {p.stem: json.loads(p.read_text())["row"] for p in (folder / "memory-tiny").glob("*.json")}


def test_every_mode_is_measured_once_in_its_own_process(tmp_path, monkeypatch, capsys):
    chosen = ("plain", "vdu-lora", "proximal-bf16")
    monkeypatch.setattr(memory, "MODES", {name: MODES[name] for name in chosen})
    code, out, err = run_vdu(monkeypatch, capsys, "bench", "run", "memory-tiny", "--results", tmp_path, "--limit", "1")
    assert code == 0, err
    assert list(_rows(tmp_path)) == ["plain"]
    said = []
    run_memory(tmp_path, "tiny", said.append)
    assert len(said) == 2
    rows = _rows(tmp_path)
    assert rows.keys() == set(chosen)
    assert rows["plain"]["peak_ratio"] == rows["plain"]["time_ratio"] == 1
    for row in rows.values():
        assert row["status"] == "measured"
        assert row["peak_gb"] > 0.1
        assert row["time_ratio"] > 0
    assert rows["vdu-lora"]["trained_count"] < rows["plain"]["trained_count"] == rows["plain"]["parameters_count"]
    code, out, _ = run_vdu(monkeypatch, capsys, "bench", "show", "memory-tiny", "--results", tmp_path)
    assert code == 0
    assert out.count("measured") == 3


def test_what_does_not_fit_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MODES", {"plain": MODES["plain"]})
    monkeypatch.setattr(memory, "_budget", lambda: 10**6)
    run_memory(tmp_path, "tiny", lambda _: None)
    row = _rows(tmp_path)["plain"]
    assert row["status"].startswith("does not fit: about")
    assert row["peak_gb"] is row["time_ratio"] is None
    refused = memory._in_fresh_process(MODES["plain"], "tiny", 10**7)
    assert refused.status.startswith("does not fit")


def test_an_unknown_size_is_one_line(tmp_path):
    with pytest.raises(VduError, match="did you mean 'sd15'"):
        run_memory(tmp_path, "sd51", print)
