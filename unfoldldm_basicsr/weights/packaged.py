"""Small trained weights that come with the package.

The folder ``pretrained`` holds, for every NAME, the weights and a model card ``NAME.md`` whose
first line says in a few words what they are for. ``SHA256SUMS`` (``sha256sum -c`` checks it) lists
the weight files; the first of them is what ``unfoldldm restore`` takes when no weights are named.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from unfoldldm_basicsr.common.suggest import nearest
from unfoldldm_basicsr.weights.checkpoint import CheckpointError

FOLDER = Path(__file__).with_name('pretrained')


class Packaged(NamedTuple):
    """Weights of the package; ``summary`` is the first line of their card."""

    path: Path
    sha256: str
    summary: str


def packaged_weights() -> dict[str, Packaged]:
    """All of them by name, the default first."""
    found = {}
    for line in (FOLDER / 'SHA256SUMS').read_text(encoding='utf-8').splitlines():
        sha256, file = line.split(maxsplit=1)
        path = FOLDER / file.lstrip('*')
        card = path.with_suffix('.md').read_text(encoding='utf-8')
        summary = card.partition('\n')[0].lstrip('# ')
        found[path.stem] = Packaged(path, sha256, summary)
    return found


def packaged_file(name: str | None = None) -> Path:
    """The weight file of that name, or the default one, checked to be the one that was published.

    Raises CheckpointError: no such weights, or the file is damaged.
    """
    known = packaged_weights()
    if name is not None and name not in known:
        raise CheckpointError(
            f'--pretrained {name}: there are {", ".join(known)}.{nearest(name, known)}'
        )
    chosen = known[name or next(iter(known))]
    if hashlib.sha256(chosen.path.read_bytes()).hexdigest() != chosen.sha256:
        raise CheckpointError(
            f'{chosen.path}: is not the published file (its SHA-256 differs); install the package'
            f' again.'
        )
    return chosen.path
