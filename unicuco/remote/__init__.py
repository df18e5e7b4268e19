"""Runs, policies, preparations and base models at a URI: any filesystem that fsspec or pyarrow knows.

One rule makes it safe on all of them, with or without an atomic rename: **nothing is ever changed in place, and every
name says the content's digest**. What an upload that failed left half-written is recognised by its digest and passed
over; the newest whole version of a document is the one that counts.

    run/00000001-DIGEST.json          a document: its newest whole version counts, the one before is kept for readers
    evaluations/part-000012-DIGEST.parquet
    policy/00000003-DIGEST.json       a folder: a document that lists files by their digest, written after them
    policy/files/SHA256
"""

from __future__ import annotations

from pathlib import Path


def is_uri(place: str | Path) -> bool:
    """Whether ``place`` is ``scheme://...``, and not a path on this machine."""
    return "://" in str(place)


def place_name(uri: str) -> str:
    """A folder's name for what lies at ``uri``: its last part, and a hash of the whole."""
    from unicuco.storage import content_hash

    whole = uri.rstrip("/")
    last = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in whole.rsplit("/", 1)[-1])
    return f"{last[:40].strip('.') or 'run'}-{content_hash(whole)[:16]}"
