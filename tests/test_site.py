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
    assert "cifar10-record" in settings
    assert "igpt lowdata [-h]" in (tmp_path / "reference" / "commands" / "index.html").read_text()


def test_a_page_that_the_menu_does_not_name_is_still_found(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import hooks
    finally:
        sys.path.pop(0)
    monkeypatch.setattr(hooks, "DOCS", tmp_path)
    (tmp_path / "howto").mkdir()
    for name in ("index.md", "howto/named.md", "howto/new.md"):
        (tmp_path / name).write_text("# A page")
    config = {"nav": [{"Start": "index.md"}, {"How to": [{"Named": "howto/named.md"}]}]}
    assert hooks.on_config(config)["nav"][2:] == [{"More": ["howto/new.md"]}]
