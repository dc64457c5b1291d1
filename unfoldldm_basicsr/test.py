"""Testing: ``python -m unfoldldm_basicsr.test -opt FILE [--root FOLDER] [--import PACKAGE] ...``.

The option file is checked as a whole, then BasicSR's own pipeline runs. Results go below the
current folder, or below ``--root``.
"""

from unfoldldm_basicsr.train import run


def main(argv: list[str] | None = None) -> None:
    """Tests, see :func:`.train.run`."""
    run('test', argv)


if __name__ == '__main__':
    main()
