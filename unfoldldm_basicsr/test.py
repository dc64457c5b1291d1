"""Testing: ``python -m unfoldldm_basicsr.test -opt FILE [--root FOLDER] [BasicSR's options]``.

The option file is checked as a whole, then BasicSR's own pipeline runs. Results go below the
current folder, or below ``--root``.
"""

from __future__ import annotations

import sys

from unfoldldm_basicsr.train import take_root
from unfoldldm_basicsr.training.memory import prefer_huge_pages


def main(argv: list[str] | None = None) -> None:
    """Runs BasicSR's ``test_pipeline``.

    A problem with the options ends with status 2; what stops a test that has begun (images that
    cannot be read, a full disk, ...) with one message and status 1.
    """
    prefer_huge_pages()
    import basicsr.test

    from unfoldldm_basicsr.common.errors import run_to_end

    root, rest = take_root(sys.argv[1:] if argv is None else argv)
    sys.argv[1:] = rest  # where BasicSR reads its options
    run_to_end(basicsr.test.test_pipeline, root)


if __name__ == '__main__':
    main()
