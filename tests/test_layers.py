"""Data flows one way: no module imports from a package further down the way."""

import ast
from pathlib import Path

import vdu

PACKAGE = Path(vdu.__file__).parent
LAYERS = (
    "errors bounds device hashing named_object output precision provenance quiet records seeding settings_file",
    "prompts concept_prompts",
    "images",
    "model_zoo",
    "backbone",
    "diffusion",
    "weights",
    "corpora",
    "detector posterior",
    "text",
    "preparation",
    "objective",
    "methods",
    "guard",
    "loop",
    "inputs",
    "evaluation",
    "report",
    "result",
    "unlearning",
    "training",
    "bench",
    "cli",
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names.split()}


def _package(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def _imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name and name.startswith("vdu."))


def test_nothing_imports_from_further_down():
    imports = {(_package(file), name) for file in PACKAGE.rglob("*.py") for name in _imported(file)}
    assert ("backbone", "errors") in imports
    assert [(own, name) for own, name in imports if own != "__init__" and LAYER[name] > LAYER[own]] == []
