"""The documents build into a site without a warning, and its pages ask no other machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What a browser fetches by itself; links are followed by people.
FETCHED = re.compile(r'<(?:script|img|iframe)[^>]+src="([^"]+)"|<link[^>]+href="([^"]+)"')


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_fetches_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        for one, other in FETCHED.findall(text):
            assert "//" not in (one or other), f"{page.name} fetches {one or other}"
        assert "<!-- commands -->" not in text
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", style.read_text()), style
    settings = (tmp_path / "reference" / "settings" / "index.html").read_text()
    assert "--train.total-steps" in settings
    assert "igpt lowdata [-h]" in (tmp_path / "reference" / "commands" / "index.html").read_text()


def test_every_page_stands_in_the_menu():
    """A page that no menu names is found by nobody."""
    menu = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    pages = [str(page.relative_to(docs)) for page in docs.rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in menu] == []
