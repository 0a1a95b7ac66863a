"""What keeps a file from being read, in words: it is missing, empty, a folder, a git-lfs pointer or a web page."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def file_problem(path: Path) -> str | None:
    """The end of the sentence "PATH: ...", without a full stop; None if the file can be opened and holds data.

    Only the first bytes are read, and nothing but a regular file is opened: reading a pipe may never end.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return "is a folder; expected a file"
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file"
        with path.open("rb") as stream:
            start = stream.read(512)
    except FileNotFoundError:
        if path.is_symlink():
            return (
                f"is a link to {os.readlink(path)}, which does not exist; if this is a hub cache, the download is "
                "incomplete: download it again"
            )
        return "no such file"
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if not start:
        return "is empty; download or copy it again"
    if start.startswith(_LFS):
        return "is a git-lfs pointer, not the file itself; fetch the file with: git lfs pull"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "is a web page, perhaps a login or error page; download the file itself"
    return None
