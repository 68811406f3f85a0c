"""Where a result comes from: package versions and the commit of the code, for every result file."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["made_by", "package_versions"]

PACKAGES = ("torch", "diffusers", "accelerate", "safetensors", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, ``-dirty`` where files differ; None for an installation."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None


# Read when the code is: what is committed while a run goes on is not what made it.
COMMIT = _commit()


def made_by() -> dict[str, Any]:
    """What every result file says of the code that made it."""
    return {"git_commit": COMMIT, "versions": package_versions()}
