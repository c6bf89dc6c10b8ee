"""`igpt cache`."""

from typing import Literal

from igpt.cli.outputs import print_json

Kind = Literal[
    "features",
    "packed",
    "finetuned",
    "downloads",
    "remote",
    "code",
    "tables",
    "verified",
    "rows",
    "all",
]


def cache(
    *,
    clear: tuple[Kind, ...] = (),
    at_most_gb: float | None = None,
    json: bool = False,
) -> None:
    """What lies in the cache folder, by kind and size; clears it.

    Args:
        clear: kinds to remove: features, packed, finetuned (models of `igpt finetune` without a
            folder of their own), downloads, remote (data that was fetched), code (what compilers
            built), tables, verified (which checksums were compared), rows (which images of large
            sets train), or all. What is in use now is left.
        at_most_gb: remove what was used longest ago until features and packed copies take no more.
        json: print the result as one JSON document.
    """
    from igpt import caches, system

    removed = caches.clear(clear) if clear else 0
    if at_most_gb is not None:
        removed += caches.trim(caches.checked_limit(at_most_gb))
    found = caches.overview()
    if json:
        facts = {"folder": str(system.cache_folder()), "removed_bytes": removed, "kinds": found}
        print_json(facts)
        return
    print(system.cache_folder())
    for kind, (n_files, n_bytes) in found.items():
        print(f"  {kind:<10} {n_files:>6} files  {n_bytes / 1e6:>10,.1f} MB")
    if removed:
        print(f"removed {removed / 1e6:,.1f} MB")
