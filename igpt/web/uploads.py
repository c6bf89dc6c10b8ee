"""The pictures that people give to the page: where they lie, which are opened, when they go."""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from igpt.errors import UserError
from igpt.files import private_folder

# Since it was last used: as long as it may be asked for once more, such as for its classes.
KEPT_S = 120.0
# An upload that nobody used, such as one that was cut off.
UNUSED_KEPT_S = 600.0
SWEEP_EVERY_S = 20.0


class Uploads:
    """Opens what was uploaded and nothing else; forgets it soon after use.

    Args:
        folder: where Gradio puts uploads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._kept: set[Path] = set()
        self._used_s: dict[Path, float] = {}

    def keep(self) -> None:
        """What lies there now, the examples, stays until the page ends."""
        self._kept = set(self._files())

    def checked(self, name: str | None) -> str | None:
        """The path of an upload, as a browser names it; it may name anything.

        Raises:
            UserError: it is no file that was uploaded, or is kept no longer.
        """
        if name is None:
            return None
        path = Path(os.path.realpath(name))
        if not path.is_relative_to(self.folder):
            raise UserError("that picture was not uploaded here: upload it")
        try:
            is_file = stat.S_ISREG(path.lstat().st_mode)
        except OSError:
            is_file = False
        if not is_file:
            raise UserError("that picture is no longer kept here: upload it again")
        self._used_s[path] = time.monotonic()
        return str(path)

    def sweep(self) -> None:
        """Remove what was used, and what nobody used for long."""
        now_s, now = time.monotonic(), time.time()
        for path in set(self._files()) - self._kept:
            used_s = self._used_s.get(path)
            with contextlib.suppress(OSError):
                is_over = (
                    now - path.stat().st_mtime > UNUSED_KEPT_S
                    if used_s is None
                    else now_s - used_s > KEPT_S
                )
                if is_over:
                    path.unlink()
                    self._used_s.pop(path, None)
                    path.parent.rmdir()

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())

    @contextlib.contextmanager
    def swept(self) -> Iterator[None]:
        """`sweep` now and then, in a thread."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SWEEP_EVERY_S):
                self.sweep()

        thread = threading.Thread(target=work, name="uploads", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def own_uploads() -> Iterator[Uploads]:
    """Uploads in a folder that only this user may read, and that is gone when the page ends."""
    base = os.environ.get("GRADIO_TEMP_DIR")
    with private_folder("igpt-page", base=Path(base) if base else None) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read whenever an upload comes
        try:
            yield Uploads(folder)
        finally:
            if base:
                os.environ["GRADIO_TEMP_DIR"] = base
            else:
                del os.environ["GRADIO_TEMP_DIR"]
