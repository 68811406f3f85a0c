"""The memory benchmark at a tiny size: real steps in fresh processes, and rows for what does not fit."""

import json
import time

import pytest
import torch
from conftest import run_vdu
from safetensors import safe_open
from safetensors.torch import save_file

from vdu import VduError
from vdu.bench import memory
from vdu.bench.memory import run_memory
from vdu.bench.memory_modes import MODES, write_model
from vdu.bench.peak_memory import held_peak


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
    assert rows["plain"]["held_ratio"] == rows["plain"]["peak_ratio"] == rows["plain"]["time_ratio"] == 1
    for row in rows.values():
        assert row["status"] == "measured"
        assert 0.1 < row["held_gb"] <= row["peak_gb"]
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
    assert row["held_gb"] is row["peak_gb"] is row["time_ratio"] is None
    write_model("tiny", tmp_path)
    refused = memory._in_fresh_process(memory._measure, MODES["plain"], tmp_path, 10**7)
    assert refused.status.startswith("does not fit")


def _held_by_reading_and_by_copying(path):
    """Bytes more than nothing, in a process that has not freed any which a copy could take again."""
    with held_peak() as nothing:
        time.sleep(0.05)
    with held_peak() as mapped, safe_open(path, framework="pt") as file:
        assert not file.get_tensor("x").any()
    with held_peak() as copied, safe_open(path, framework="pt") as file:
        copy = file.get_tensor("x") + 1
        for _ in range(20):  # in use for some looks at it
            copy += 1
            time.sleep(0.02)
    return mapped[0] - nothing[0], copied[0] - nothing[0]


def test_what_is_mapped_from_a_file_is_not_held(tmp_path):
    megabytes = 64
    save_file({"x": torch.zeros(megabytes, 2**18)}, tmp_path / "x.safetensors")
    mapped, copied = memory._in_fresh_process(_held_by_reading_and_by_copying, tmp_path / "x.safetensors")
    assert mapped < megabytes * 2**20 / 2 < copied


def test_an_unknown_size_is_one_line(tmp_path):
    with pytest.raises(VduError, match="did you mean 'sd15'"):
        run_memory(tmp_path, "sd51", print)
