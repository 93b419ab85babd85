"""The documentation is built without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'memvit[docs]'")
DOCS = Path(__file__).parents[2] / "docs"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(site)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert [page for page in pages if not (site / page).is_file()] == []

    reference = (site / "api" / "models.html").read_text()
    assert 'id="memvit.create_model"' in reference
    assert "Past clips kept per memory layer – M x gap." in reference  # not taken for a type
    for name in ("waiting_k", "waiting_v"):  # `waiting_k, waiting_v: ...` says of both what it says
        assert re.search(rf"<strong>{name}</strong> .*?– \(B, slots, N, dim\)", reference), name
