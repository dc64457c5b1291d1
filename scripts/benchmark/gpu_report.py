"""What a machine with a GPU does with this package, in one table within eight minutes.

    python scripts/benchmark/gpu_report.py                # writes results/gpu_report/report.md
    python scripts/benchmark/gpu_report.py --cpu          # rehearsal with tiny sizes, without a GPU

Every step is a command in a process of its own with a limit of time; one that fails or takes too
long is named in the table, and the others go on. Its output is kept beside the report.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import common
import torch

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 480  # of the whole report


class Step(NamedTuple):
    """One command: ``words`` after ``python``, within ``seconds``.

    ``case``: columns of its table that say what was measured; ``figures``: those with results, and
    their units. Without a table counts what the words print.
    """

    title: str
    words: list[str]
    seconds: int
    case: tuple[str, ...] = ()
    figures: dict[str, str] = {}


def steps(out: Path, *, gpu: bool) -> list[Step]:
    """The steps in the order of their worth; tables go to ``out``. Without GPU: a rehearsal."""
    device = ['--device', 'cuda' if gpu else 'cpu']
    few = ['--repeats', '5' if gpu else '1', '--budget', '20']
    base = ['unfoldldm-base-phase1', 'unfoldldm-base-phase2', 'restormer', 'nafnet']
    small, tiny = 'unfoldldm-small-phase1', 'unfoldldm-tiny-phase1'

    def script(title: str, name: str, *words: str) -> list[str]:
        return [f'scripts/benchmark/{name}.py', *device, '--out', str(out / title), *words]

    training = ('network', 'variant', 'batch', 'size'), {'ms': 'ms', 'peak_MiB': 'MiB'}
    return [
        Step('tests', ['-m', 'pytest', '-q', '-m', 'gpu' if gpu else 'not gpu and not slow', '-k',
             '' if gpu else 'describe', 'tests/test_ss2d_backends.py'], 50),
        Step('scan', script('scan', 'scan', '--sizes', '64' if gpu else '12', '--d-states', '1',
             '16', '--repeats', few[1]), 60,
             ('task', 'd_state', 'implementation'),
             {'milliseconds': 'ms', 'op_relative_difference': 'difference'}),
        Step('forward', script('forward', 'networks', *few, '--no-memory', '--networks',
             *(['unfoldldm-tiny', 'unfoldldm-small', 'unfoldldm-base', 'restormer', 'nafnet',
                'vlunet'] if gpu else ['unfoldldm-tiny']),
             '--sizes', '256' if gpu else '16'), 60, ('network', 'batch', 'size'), {'ms': 'ms'}),
        *(Step(title, script(title, 'training_step', *few, '--variants', variant, '--networks',
               *(base if gpu else [tiny]), '--sizes', '128' if gpu else '16', '--batch',
               '4' if gpu else '1'), 90, *training)
          for title, variant in (('float32', 'plain'), ('bf16', 'bf16'))),
        Step('several', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
             str(torch.cuda.device_count() if gpu else 2), '-m', 'unfoldldm_basicsr.train',
             '--root', str(out), '-opt', 'options/smoke/unfoldldm_phase1.yml', '--launcher',
             'pytorch', '--force_yml', f'datasets:train:dataroot_gt={out / "photos"}',
             'datasets:train:io_backend:type=disk', f'datasets:val:dataroot_gt={out / "photos"}',
             'datasets:val:io_backend:type=disk', f'train:total_iter={100 if gpu else 4}',
             'train:warmup_iter=2', f'logger:print_freq={20 if gpu else 1}',
             *([] if gpu else ['num_gpu=0', 'datasets:train:gt_size=16'])], 60),
        Step('compile', script('compile', 'training_step', *few, '--no-memory', '--variants',
             'plain', 'compile', '--networks', small if gpu else tiny, '--sizes',
             '128' if gpu else '16'), 70, *training),
    ]  # fmt: skip


def run_step(step: Step, out: Path, seconds: float) -> str:
    """Runs a step and keeps its output; returns '' or what became of it."""
    paths = filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    with (out / f'{step.title}.log').open('w', encoding='utf-8') as log:
        process = subprocess.Popen(
            [sys.executable, *step.words],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f'not done within {seconds:.0f} s'
        finally:
            for end in (signal.SIGTERM, signal.SIGKILL):  # torchrun ends its processes on TERM
                if process.poll() is None:
                    os.killpg(process.pid, end)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(10)
    return f'FAILED with status {code}' if code else ''


def results(step: Step, out: Path) -> Iterator[tuple[str, str]]:
    """(case, figures) of a step, as far as it came."""
    table, log = out / f'{step.title}.csv', out / f'{step.title}.log'
    if table.exists():
        with table.open(encoding='utf-8') as file:
            next(file)  # the machine
            for row in csv.DictReader(file):
                figures = [f'{row[k]} {unit}' for k, unit in step.figures.items() if row.get(k)]
                yield ' '.join(row[key] for key in step.case), ', '.join(figures) or 'no memory'
        return
    text = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
    for pattern, case, unit in (
        (r'it_per_s: (\S+)', f'{" ".join(step.words[4:5])} processes', ' iterations/s'),
        (r'(\d+ (?:passed|failed|skipped).* in \S+)', step.words[-1], ''),
    ):
        found = re.findall(pattern, text)
        if found:
            yield case, found[-1] + unit


def main(argv: list[str] | None = None) -> int:
    parser = common.new_parser(__doc__)
    parser.add_argument('--cpu', action='store_true', help='rehearsal with tiny sizes')
    parser.add_argument('--out', type=Path, default=Path('results/gpu_report'), help='folder')
    args = parser.parse_args(argv)
    if not args.cpu and not torch.cuda.is_available():
        print('PyTorch finds no GPU here, so there is nothing to report; --cpu rehearses.')
        return 1
    out, begin, faults = args.out.absolute(), time.monotonic(), 0
    out.mkdir(parents=True, exist_ok=True)
    machine = common.prepare_machine('cpu' if args.cpu else 'cuda', torch.get_num_threads())
    count = '' if args.cpu else f'{torch.cuda.device_count()} x '
    lines = [f'# {count}{machine}', '', '| step | case | result |', '| --- | --- | --- |']
    common.write_photos(out / 'photos', 8, 256, 256)
    for step in steps(out, gpu=not args.cpu):
        (out / step.title).with_suffix('.csv').unlink(missing_ok=True)
        left = min(step.seconds, begin + SECONDS - time.monotonic())
        print(f'{step.title} (at most {left:.0f} s) ...', flush=True)
        fault = run_step(step, out, left) if left > 0 else 'no time was left for it'
        faults += bool(fault)
        found = list(results(step, out)) + ([(f'see {step.title}.log', fault)] if fault else [])
        lines += [f'| {step.title} | {case} | {figures} |' for case, figures in found]
        (out / 'report.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print('\n'.join(lines))
    print(f'written: {out / "report.md"}, {time.monotonic() - begin:.0f} s')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
