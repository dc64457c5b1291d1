"""Measures how long ``import unfoldldm_basicsr`` takes, against BasicSR's own import.

    python scripts/benchmark/import_time.py --repeats 5

Both in fresh interpreters, in turn, wall time of the import statement alone. BasicSR 1.4.2 cannot
be imported with a current torchvision, so its side first gets the module that it misses, as cheaply
as possible. The promise is a ratio of at most 1.10.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[2]
PROMISE = 1.10
BASICSR = """
import importlib.util, sys, types
if importlib.util.find_spec('torchvision.transforms.functional_tensor') is None:
    from torchvision.transforms import functional
    shim = types.ModuleType('shim')
    shim.rgb_to_grayscale = functional.rgb_to_grayscale
    sys.modules['torchvision.transforms.functional_tensor'] = shim
import basicsr
"""
SIDES = {'basicsr': BASICSR, 'package': 'import unfoldldm_basicsr'}
TIMED = 'import time, warnings; warnings.simplefilter("ignore"); begin = time.perf_counter()\n{}\n'
TIMED += 'print("seconds", time.perf_counter() - begin)'


def import_seconds(code: str) -> float:
    """Duration of an import in a fresh interpreter."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    env.pop('PYTHONDONTWRITEBYTECODE', None)  # an installed package has its byte code
    done = subprocess.run(
        [sys.executable, '-c', TIMED.format(code)], env=env, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return float(done.stdout.split('seconds')[-1])


def main(argv: list[str] | None = None) -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path('results/import_time'))
    args = parser.parse_args(argv)
    machine = common.prepare_machine('cpu', 1)
    print(machine)
    for code in SIDES.values():  # writes the byte code, fills the file cache
        import_seconds(code)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(args.repeats):
        for side, code in SIDES.items():
            times[side].append(import_seconds(code))
    ratio = common.median_ratio(times['package'], times['basicsr'])
    row = {f'{side}_s': f'{statistics.median(t):.3f}' for side, t in times.items()}
    row |= {'rounds': args.repeats, 'ratio': f'{ratio:.3f}', 'promise': f'{PROMISE:.2f}'}
    common.print_row(row)
    print(f'written: {common.write_table([row], args.out, machine)}')


if __name__ == '__main__':
    main()
