"""The notebook's cells run in order, as they stand, in an empty folder."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "first-steps.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    document = json.loads(NOTEBOOK.read_text())
    assert document["nbformat"] == 4
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not any(cell["outputs"] for cell in cells)
    names = {}
    for i, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {i}", "exec"), names)
    size = names["model"].image_size
    assert names["halves"].shape == (1, 2, size, size, 3)
    assert names["vectors"].ndim == 2 and names["odd"].shape == (size, size)
    assert "nats a pixel" in capsys.readouterr().out
