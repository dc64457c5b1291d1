"""Small trained weights that come with the package.

The folder ``pretrained`` holds, for every NAME, the weights and a model card ``NAME.md`` whose
first line says in a few words what they are for. ``SHA256SUMS`` (``sha256sum -c`` checks it) lists
the weight files; the first of them is what ``unfoldldm restore`` takes when no weights are named.
"""

from pathlib import Path

from unfoldldm_basicsr.common.suggest import check_choice

FOLDER = Path(__file__).with_name('pretrained')


def packaged_weights() -> dict[str, Path]:
    """All weight files by name, the default first."""
    lines = (FOLDER / 'SHA256SUMS').read_text(encoding='utf-8').splitlines()
    paths = (FOLDER / line.split()[1] for line in lines)
    return {path.stem: path for path in paths}


def summary(path: Path) -> str:
    """First line of the card of a weight file."""
    card = path.with_suffix('.md').read_text(encoding='utf-8')
    return card.partition('\n')[0].lstrip('# ')


def packaged_file(name: str | None = None) -> Path:
    """The weight file of that name, or the default one; ValueError: no such weights."""
    known = packaged_weights()
    if name is not None:
        check_choice('--pretrained', name, known)
    return known[name or next(iter(known))]
