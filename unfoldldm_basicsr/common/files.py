"""Files that appear under their name complete and on disk, or not at all."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY_SUFFIX = '.tmp'


def write_bytes_atomic(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Writes a file, which takes the name ``path`` when everything is written.

    A reader, or a process that is killed at any moment, sees the old file or the new one, never a
    part. Missing folders are made. Whatever goes wrong, the temporary file next to ``path`` is
    removed.

    Raises OSError: it cannot be written (disk full, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name[-40:]}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == 'posix':  # makes the new name durable too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the user knows; a full disk gives none
        with suppress(OSError):  # the disk is faulty: the next start of a training removes it
            temporary.unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Makes the folder; OSError: no file can be written there."""
    if folder.is_file():
        raise FileExistsError(f'--output {folder}: is a file; name a folder.')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f'--output {folder}: cannot write there: {error.strerror}.') from error


def refuse_existing(source: Path, target: Path, *, overwrite: bool) -> None:
    """Raises FileExistsError: the target is ``source``, or exists and is not to be replaced."""
    if target.exists() and source.exists() and target.samefile(source):
        raise FileExistsError(f'{target}: is the file that is read; choose another name.')
    if target.exists() and not overwrite:
        raise FileExistsError(f'{target}: exists; choose another name or pass --overwrite.')
