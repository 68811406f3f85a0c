"""Suites are read, and their results shown."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vdu.bench.given import require_inputs
from vdu.bench.made_rows import MadeRows
from vdu.bench.suite import SUITES, read_suite, result_path
from vdu.bench.tables import render
from vdu.errors import VduError
from vdu.methods import find_method
from vdu.prompts import Prompts

ROW_KEYS = {
    *("method", "target", "seed", "pul", "pul_low", "pul_high", "share_before", "share_after", "share_none"),
    *("u_fid", "u_fid_original", "seconds", "steps"),
}


def test_shipped_suites_are_valid_and_unknown_names_are_refused(tmp_path):
    suite = read_suite("mnist-digits")
    # Five methods on ten digits, nine on four, three seeds each.
    assert len(list(suite.runs())) == (5 * 10 + 9 * 4) * 3
    with pytest.raises(VduError, match="did you mean 'mnist-digits'"):
        read_suite("mnist-digit")
    bad = tmp_path / "bad.toml"
    bad.write_text(
        'model = "mnist"\ntargets = ["x"]\nseeds = [0]\nsamples = 100\nsampler_steps = 2\n[methods.ga]\nmethod = "ga"\n'
    )
    with pytest.raises(VduError, match="mnist knows no class 'x'"):
        read_suite(str(bad))
    bad.write_text(bad.read_text().replace('"x"', '"3"') + 'targets = ["8"]\n')
    with pytest.raises(VduError, match="the target '8' of a method"):
        read_suite(str(bad))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seeds = [0]", "seeds = [1, 0, 1]"), "seeds has 1 more than once"),
        (('["3"]', '["3", "3"]'), "targets has 3 more than once"),
        (('method = "ga"', 'method = "ga"\ntargets = ["3", "3"]'), "methods.ga.targets has 3 more than once"),
        (("seeds = [0]", "seeds = [-1]"), "seeds"),
        (("[methods.ga]", "[methods.retrain]"), "'retrain' is the name of rows of retrained models"),
    ],
)
def test_seeds_targets_and_names_that_make_no_rows_of_their_own_are_refused(change, said, tmp_path):
    text = (
        'model = "mnist"\ntargets = ["3"]\nseeds = [0]\nsamples = 100\nsampler_steps = 2\n[methods.ga]\nmethod = "ga"\n'
    )
    (tmp_path / "bad.toml").write_text(text.replace(*change))
    with pytest.raises(VduError, match=said):
        read_suite(str(tmp_path / "bad.toml"))


def test_a_suite_that_takes_more_forget_images_than_there_are_says_how_to_make_them():
    with pytest.raises(VduError, match=r"takes 500 forget images of class 3, there are 100: give --forget FORGET.*500"):
        require_inputs(read_suite("mnist-forget-images"))
    require_inputs(read_suite("mnist-digits"))


def test_tables_are_made_from_result_files(tmp_path):
    row = dict.fromkeys(ROW_KEYS, 1.0) | {"method": "vdu", "target": "3", "seed": 0, "pul": 97.5, "u_fid": None}
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "vdu-3-0.json").write_text(json.dumps({"row": row}))
    assert json.loads(render("some", tmp_path, "json")) == [row | {"u_fid_oracle": None}]
    table = render("some", tmp_path, "table")
    assert "97.5 " in table
    assert "| –" in table
    with pytest.raises(VduError, match="no results"):
        render("other", tmp_path, "table")


def test_a_suite_file_may_say_where_the_images_are_and_is_shown_by_its_file(tmp_path):
    suite = tmp_path / "mine.toml"
    text = 'model = "cifar10"\ntargets = ["frog"]\nseeds = [0]\nsamples = 100\nsampler_steps = 2\nforget = "own"\n'
    suite.write_text(text + '[methods.ga]\nmethod = "ga"\n')
    assert str(read_suite(str(suite)).forget) == "own"
    assert read_suite(str(suite), forget=tmp_path).forget == tmp_path
    (tmp_path / "mine").mkdir()
    row = {"method": "ga", "target": "frog", "seed": 0, "pul": 97.5}
    (tmp_path / "mine" / "ga-frog-0.json").write_text(json.dumps({"row": row}))
    assert "97.5" in render(str(suite), tmp_path, "table")
    for empty in (text + "[methods]\n", text.replace("[0]", "[]"), text.replace('["frog"]', "[]")):
        suite.write_text(empty if "[methods]" in empty else empty + '[methods.ga]\nmethod = "ga"\n')
        with pytest.raises(VduError, match="at least 1 item"):
            read_suite(str(suite))


def test_two_methods_whose_rows_would_be_one_file_are_refused(tmp_path):
    suite = tmp_path / "mine.toml"
    head = 'model = "mnist"\ntargets = ["3"]\nseeds = [0]\nsamples = 100\nsampler_steps = 2\n'
    suite.write_text(head + '[methods."ga, 2"]\nmethod = "ga"\n[methods."ga 2"]\nmethod = "ga"\n')
    with pytest.raises(VduError, match="'ga, 2' on 3 and 'ga 2' on 3 would have one result file"):
        read_suite(str(suite))
    suite.write_text(head + '[methods."ga 1/2"]\nmethod = "ga"\n')
    (run,) = read_suite(str(suite)).runs()
    assert result_path(tmp_path, read_suite(str(suite)), run) == tmp_path / "mine" / "ga-1-2-3-0.json"


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.toml")))
def test_no_row_that_is_shipped_is_taken_for_one_of_other_settings(name):
    suite, results = read_suite(name), Path(__file__).parent.parent / "results"
    rows = MadeRows(suite, results)
    rows.refuse_others()  # today's model and judge are theirs
    there = [run for run in suite.runs() if result_path(results, suite, run).is_file()]
    assert there
    assert all(rows.has(run) for run in there)


@pytest.fixture
def shipped(tmp_path):
    """Rows of a suite, one of its runs, the record of that, and where it is to be written."""
    suite = read_suite("mnist-14")
    run = next(run for run in suite.runs() if (run.label, run.target) == ("vdu", "3"))
    record = json.loads(result_path(Path(__file__).parent.parent / "results", suite, run).read_text())
    path = result_path(tmp_path, suite, run)
    path.parent.mkdir()
    return MadeRows(suite, tmp_path), run, record, path


def test_a_row_of_other_defaults_than_those_of_today_is_not_taken_for_made(shipped):
    rows, run, record, path = shipped
    record["unlearning"]["settings"]["rho_max"] = 0.8
    path.write_text(json.dumps(record))
    with pytest.raises(VduError, match=r"vdu-3-0\.json was made with rho_max = 0\.8, today it would be 0\.9: "):
        rows.has(run)


def test_a_row_of_a_model_with_text_is_held_against_the_defaults_with_text(shipped):
    rows, run, record, path = shipped
    record["unlearning"]["prompts"] = asdict(Prompts())
    path.write_text(json.dumps(record))
    with pytest.raises(VduError, match=r"vdu-3-0\.json was made with .*, today it would be"):
        rows.has(run)
    record["unlearning"]["settings"] |= find_method("vdu").settings.with_text
    path.write_text(json.dumps(record))
    assert rows.has(run)
