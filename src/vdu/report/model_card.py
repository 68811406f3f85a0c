"""The README.md of an unlearned pipeline's folder: front matter for the hub, verdict, figures, settings, limits."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vdu.prompts import quoted_prompts
from vdu.report.figures import Cell, figure_rows
from vdu.report.page import settings_rows
from vdu.report.verdict import cautions, verdict

__all__ = ["write_model_card"]

LIMITS = (
    "Forgetting was measured by sampling with this detector; it does not prove that fine-tuning can't bring the "
    "content back."
)
UNMEASURED_LIMITS = (
    "Forgetting was not measured with a detector. Even where sampling shows it, that does not prove that fine-tuning "
    "can't bring the content back."
)
USE = {
    "pipeline": "It loads like any diffusers pipeline.",
    "delta": "It holds only what changed: `vdu apply MODEL DELTA --out DIR` makes the pipeline.",
    "lora": "It holds a LoRA for the original: `pipeline.load_lora_weights(FOLDER)`.",
}
CITATION = """```bibtex
@misc{panda2025unlearning,
  title         = {Unlearning in Diffusion models under Data Constraints: A Variational Inference Approach},
  author        = {Panda, Subhodip and Varun, M S and Jain, Shreyans and Maharana, Sarthak Kumar and Prathosh, A P},
  year          = {2025},
  eprint        = {2510.04058},
  archivePrefix = {arXiv}
}
```"""


def _text(value: object) -> str:
    """``value`` on one line, with nothing left that Markdown or HTML would act on."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(_text(value) for value in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def _hub_id(model: str) -> str | None:
    """``model`` where it is an ``owner/name`` of the hub and no folder here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if model.count("/") != 1 or model.startswith((".", "~", "/")) or Path(model).exists():
        return None
    try:
        validate_repo_id(model)
    except HFValidationError:
        return None
    return model


def _front_matter(model: str, text_to_image: bool) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=_hub_id(model),
        library_name="diffusers",
        pipeline_tag="text-to-image" if text_to_image else "unconditional-image-generation",
        tags=["unlearning", "vdu"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _figures(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured: no evaluation was made."
    rows = [(row.label, _cell(row.before), _cell(row.after)) for row in figure_rows(evaluation)]
    basis = (
        f"{evaluation['samples']} pictures of each model from equal seeds, judged by {evaluation['detector']['name']}"
    )
    note = f"{basis}; 95 % intervals in brackets. The definitions stand in report.html."
    return f"{_table(('Figure', 'Original', 'Unlearned'), rows)}\n\n{_text(note)}"


def _asked(unlearning: dict[str, Any]) -> str:
    forget, kept = unlearning["forget"], unlearning.get("retain")
    rows = [
        ("model", unlearning["model"]),
        ("forget images", forget["images"]),
        ("images to keep", kept["images"] if kept else "none"),
        ("method", unlearning["method"]),
        ("seed", unlearning["seed"]),
        ("step kept", f"{unlearning['best_step']} of {unlearning['steps']}"),
        ("original SHA-256", unlearning["model_sha256"]),
        ("unlearned SHA-256", unlearning["result_sha256"]),
    ]
    asked = [
        (f"prompts, {kind}", quoted_prompts(prompts))
        for kind, prompts in (unlearning.get("prompts") or {}).items()
        if kind != "guidance_scale"
    ]
    return _table(("Setting", "Value"), [*rows, *asked, *settings_rows(unlearning["settings"])])


def write_model_card(
    folder: Path, unlearning: dict[str, Any], evaluation: dict[str, Any] | None, form: str = "pipeline"
) -> None:
    """Write ``folder/README.md``. ``form``: what the folder holds, the whole pipeline, a delta or a LoRA."""
    parts = [
        _front_matter(str(unlearning["model"]), bool(unlearning.get("prompts"))),
        f"# {_text(unlearning['model'])}, unlearned",
        *(_text(said) for said in (verdict(unlearning, evaluation), *cautions(unlearning, evaluation))),
        f"Made with vdu, Variational Diffusion Unlearning (arXiv 2510.04058). {USE[form]}",
        f"## Figures\n\n{_figures(evaluation)}",
        f"## Settings\n\n{_asked(unlearning)}",
        f"## Limits\n\n{UNMEASURED_LIMITS if evaluation is None else LIMITS}",
        f"## Citation\n\n{CITATION}",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")
