"""Image files as commands take them: single files and whole folders, read only when needed.

What cannot be read is left out, named and counted; above the share of `--max-bad` the command stops
(`igpt.images.rejects`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from igpt.errors import UserError
from igpt.images.rejects import MAX_BAD, Rejects, check_max_bad, check_rejects, in_words
from igpt.system import at_home

if TYPE_CHECKING:
    import numpy as np

    from igpt.pixelmodel import PixelModel
    from igpt.train.distributed import World

Images = Positional[
    Annotated[tuple[str, ...], arg(metavar="IMAGES", help_behavior_hint="(one or more)")]
]
MaxBad = Annotated[float, arg(help="share of the images that may be left out before it stops.")]

# Files that are named when they are left out; the rest is only counted.
MOST_NAMED = 20


class ImageFiles:
    """The image files that a command was given.

    Args:
        names: files, and folders with all folders below.
        max_bad: share of the images that may be left out.
        at_most: more are refused; None: any number.

    Raises:
        UserError: a name is not there, a folder holds no images, or there are too many.
    """

    def __init__(
        self, names: Sequence[str], *, max_bad: float = MAX_BAD, at_most: int | None = None
    ) -> None:
        from igpt.images.sources.folders import images_below
        from igpt.progress import say

        check_max_bad(max_bad)
        self.files: list[Path] = []
        self.rejects = Rejects()
        self._max_bad = max_bad
        self._n_read = 0
        self.bad: dict[int, str] = {}
        """Place in `files` of what was left out, and why."""
        self._found: set[int] = set()
        for name in names:
            path = at_home(name)
            if not path.is_dir():
                if not path.exists() and not path.is_symlink():
                    raise UserError(f"{name} is neither a file nor a folder: check the path")
                self.files.append(path)
                continue
            inside, lines = images_below(path)
            if not inside:
                seen = f" ({'; '.join(lines)})" if lines else ""
                raise UserError(
                    f"{name} holds no images{seen}: name image files or a folder of them"
                )
            for line in lines:
                say(f"{name}: {line}")
            self._found.update(range(len(self.files), len(self.files) + len(inside)))
            self.files += inside
        if not self.files:
            raise UserError("no images are given: name image files or a folder of them")
        if at_most is not None and len(self.files) > at_most:
            raise UserError(
                f"{len(self.files)} images are given: at most {at_most} fit on one sheet"
            )

    def __len__(self) -> int:
        return len(self.files)

    def squares(self, rows: slice, side: int) -> "Iterator[tuple[int, np.ndarray, int]]":
        """Those of some files that can be read: place in `files`, (S, S, 3) uint8, shorter side.

        Raises:
            UserError: too many cannot be read.
        """
        from igpt.images.recognise import check_not_own
        from igpt.images.taking import read_square

        for i in range(len(self.files))[rows]:
            if i in self.bad:
                continue
            check = check_not_own if i in self._found else None
            try:
                made, px = read_square(self.files[i], side, check=check)
            except UserError as error:
                self._leave_out(i, error)
            else:
                yield i, made, px
            self._n_read = max(self._n_read, i + 1)

    def _leave_out(self, i: int, error: UserError) -> None:
        from igpt.images.sources.names import shown
        from igpt.progress import say

        reason = str(error.__cause__ or error)
        name = shown(self.files[i])
        self.bad[i] = reason
        self.rejects.add(name, reason)
        if len(self.files) == 1:
            raise error
        if len(self.rejects.named) <= MOST_NAMED:
            say(f"left out: {name}: {reason}")
        check_rejects(
            self.rejects.reasons,
            n_read=self._n_read + 1,
            n_images=len(self.files),
            max_bad=self._max_bad,
            listed="the lines above",
        )

    def take_over(self, others: "dict[int, str]") -> None:
        """Leave out what other processes could not read: place in `files` and reason.

        Raises:
            UserError: with these there are too many.
        """
        from igpt.images.sources.names import shown

        for i, reason in sorted(others.items()):
            if i not in self.bad:  # every process looks at the first image
                self._leave_out(i, UserError(reason))
        if others:
            self.rejects = Rejects()
            for i, reason in sorted(self.bad.items()):
                self.rejects.add(shown(self.files[i]), reason)

    def say_left_out(self) -> None:
        """How many were left out, if any."""
        from igpt.progress import say

        if self.rejects.named:
            some = f"{len(self.rejects.named)} of {len(self.files)} images are left out"
            say(f"{some} ({in_words(self.rejects.reasons)})")

    def left_out(self) -> list[dict[str, str]]:
        """Name and reason of each that was left out, for JSON."""
        return [{"path": name, "reason": reason} for name, reason in self.rejects.named]


class FileImages:
    """Image files as an array that is read a slice at a time: (N, S, S, 3) uint8.

    A row whose file cannot be read is black, and `is_good` is false there once it was read.

    Args:
        files: to read.
        model: that the images are for.
    """

    def __init__(self, files: ImageFiles, model: "PixelModel") -> None:
        import numpy as np

        self._files = files
        self._model = model
        self._shorter_px: dict[int, int] = {}
        self.is_good = np.zeros(len(files), bool)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, rows: slice, /) -> "np.ndarray":
        import numpy as np

        side = self._model.image_size
        places = range(len(self))[rows]
        images = np.zeros((len(places), side, side, 3), np.uint8)
        for i, made, px in self._files.squares(rows, side):
            images[i - places.start] = made
            if not self.is_good[i]:
                self.is_good[i] = True
                self._shorter_px[i] = px
        return images

    def gather(self, world: "World") -> None:
        """Tell the first process what the others read and could not read; all must call this."""
        from igpt.train.distributed import collected

        found = collected((self._files.bad, self._shorter_px), world)
        for bad, shorter_px in found[1:]:
            self._files.take_over(bad)
            self._shorter_px |= shorter_px

    def finish(self) -> None:
        """Say what was left out, and which images are far from what the model knows."""
        from igpt.images.taking import warn_of_sizes

        self._files.say_left_out()
        side, source_px = self._model.image_size, self._model.source_px
        warn_of_sizes(list(self._shorter_px.values()), side, source_px=source_px)


def read_beside(
    model: "PixelModel", files: ImageFiles, *, rows: slice | None = None
) -> "tuple[list[int], list[np.ndarray], np.ndarray]":
    """Each image as `pictures.framed` shows it, and all as the model takes them.

    Large images are made small one after another, so few of them are in memory at a time.

    Returns:
        Places in `files` of those that can be read; (H, W, 3) uint8 each; (n, S, S, 3) uint8.
    """
    import numpy as np

    from igpt.generate.pictures import framed
    from igpt.images.decode import read_image
    from igpt.images.taking import warn_of_sizes

    places, shown, inputs, shorter_px, side = [], [], [], [], model.image_size
    for i, made, px in files.squares(rows or slice(None), side):
        places.append(i)
        shown.append(framed(read_image(files.files[i]), side))
        inputs.append(made)
        shorter_px.append(px)
    warn_of_sizes(shorter_px, side, source_px=model.source_px)
    return places, shown, np.stack(inputs)
