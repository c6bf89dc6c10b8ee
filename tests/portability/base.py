"""The documents' own lines in a bare environment: `python base.py BIN`, BIN being its `bin` folder.

What README and the tutorial mark as runnable is run there with the base install alone, no compiler
and no npm on the PATH, and no HOME. Needs nothing but that environment; `.ci/run` calls it before
anything else is installed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
BLOCK = re.compile(r"<!-- runnable -->\n```(sh|python)\n(.*?)```", re.DOTALL)
EXTRAS = ("pyarrow", "gradio", "onnx", "onnxruntime", "wandb", "tensorboard", "transformers")
PHOTOS = """
import numpy as np
from pathlib import Path
from PIL import Image
rng = np.random.default_rng(0)
for name, color in (("cats", (200, 80, 40)), ("dogs", (40, 120, 200)), ("boats", (90, 180, 60))):
    place = Path("photos", name)
    place.mkdir(parents=True)
    for i in range(16):
        noise = rng.integers(-40, 41, (40, 48, 3))
        image = Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))
        image.save(place / f"{i}.jpg")
        image.save(f"{name[:-1]}.jpg")
"""


def steps():
    """Every marked block, as what a shell or Python is given."""
    yield "photos", ["python", "-c", PHOTOS]
    absent = f"from importlib.util import find_spec as f; assert not any(map(f, {EXTRAS}))"
    yield "no extras are installed", ["python", "-c", absent]
    yield "no compiler", ["python", "-c", "from igpt import cpp; assert cpp.compiler() is None"]
    for page in PAGES:
        for i, (kind, text) in enumerate(BLOCK.findall(page.read_text())):
            if kind == "python":
                yield f"{page.name}, block {i}", ["python", "-c", text]
                continue
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield line, line.split()


def main():
    bin_folder = Path(sys.argv[1]).absolute()
    failed = passed = 0
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": str(bin_folder), "LANG": "C.UTF-8", "TMPDIR": folder}
        for name, words in steps():
            command = [str(bin_folder / words[0]), *words[1:]]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            good = done.returncode == 0 and "Traceback" not in done.stderr
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok    ' if good else 'FAILED'} {name}", flush=True)
            if not good:
                print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    print(f"base: {passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    os.environ.pop("HOME", None)
    main()
