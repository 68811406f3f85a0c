"""Tables of pages are made by the commands that stand before them; those of this repository are what its files say."""

import json
from pathlib import Path

import pytest
from conftest import run_vdu

from vdu import VduError
from vdu.bench.pages import refresh, refreshed

REPOSITORY = Path(__file__).parent.parent
PAGE = """# Results
<!-- vdu bench show some --columns pul --target a -->
| old |
after
"""


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "some"
    folder.mkdir(parents=True)
    for target, pul in (("a", 96.04), ("b", -4.0)):
        row = {"method": "vdu", "target": target, "seed": 0, "pul": pul}
        (folder / f"vdu-{target}-0.json").write_text(json.dumps({"row": row}))
    return tmp_path / "results"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_of_this_repository_are_what_its_result_files_say(page):
    text = (REPOSITORY / page).read_text()
    assert refreshed(text, REPOSITORY / "results") == text, f"run: ./run vdu bench page {page}"


def test_a_table_is_made_anew_and_the_rest_left_alone(results, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    said = [run_vdu(monkeypatch, capsys, "bench", "page", page, "--results", results)[:2] for _ in range(2)]
    assert said == [(0, f"{page}: made anew\n"), (0, f"{page}: as it was\n")]
    table = "| method | runs | PUL, % |\n| ------ | ---- | ------ |\n| vdu    | 1    | 96.0   |\n"
    assert page.read_text() == PAGE.replace("| old |\n", table)


def test_a_place_without_a_table_gets_one_and_a_figure_below_nothing_is_told_by_a_minus(results):
    page = "<!-- vdu bench show some --columns pul --by target -->\n"
    made = refreshed(page, results)
    assert [line.split("|")[-2].strip() for line in made.splitlines()[1:]] == ["PUL, %", "------", "96.0", "−4.0"]
    assert refreshed(made, results) == made


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("some --columns pull", "no column 'pull'"),
        ("other --by seed", "no results of other"),
        ("some --colums pul", "unrecognized arguments: --colums pul"),
        ("some --columns pul --target c", "no result is of the target 'c'"),
        ("some", "give --columns or --by"),
        ("some --columns 'pul", "No closing quotation"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_named_and_the_page_left_alone(results, tmp_path, changed, said):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("some --columns pul --target a", changed))
    before = page.read_text()
    with pytest.raises(VduError, match=rf"page\.md: vdu bench show {changed}: .*{said}"):
        refresh(page, results)
    assert page.read_text() == before


def test_the_last_line_of_a_page_needs_no_end(results):
    comment = "<!-- vdu bench show some --columns 'pul, u_fid' --target a -->"
    made = refreshed(comment, results)
    assert made == refreshed(made, results) == refreshed(made.rstrip("\n"), results)
    assert made.splitlines()[1].count("|") == 5


def test_a_page_without_tables_and_one_that_is_not_there_are_refused(results, tmp_path):
    with pytest.raises(VduError, match="no line <!-- vdu bench show"):
        refreshed("# Results\n", results)
    with pytest.raises(VduError, match="cannot be read"):
        refresh(tmp_path / "none.md", results)
