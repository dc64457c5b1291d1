"""Kills a training at random moments, resumes it by the same command, compares the final weights.

    python scripts/faults/kill_and_resume.py --model phase1 --runs 20
    python scripts/faults/kill_and_resume.py --model phase2 --runs 5 --ranks 2

An uninterrupted training is the reference. Each run is killed with SIGKILL (with several ranks: one
of them, drawn by chance) at an iteration drawn by chance and a random part of a second after it is
logged, so in the middle of a step, a validation or a checkpoint. It is started again until it is
finished, and must end with the same files in ``models``, bit by bit. Prints one line per run; the
exit status is 1 if any differs.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from tiny_trainings import MODELS, write_project  # noqa: E402
from training_process import Training  # noqa: E402

COLUMNS = ('run', 'killed at', 'rank', 'resumed at', 'passed over', 'files', 'result', 'seconds')


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    folder = Path(args.folder or tempfile.mkdtemp(prefix='kill_and_resume_'))
    option_file = write_project(
        folder, args.model, iterations=args.iterations, workers=args.workers
    )
    settings = {'ranks': args.ranks, 'fork': args.fork}
    reference = Training(folder / 'reference', option_file, **settings)
    reference.wait(lambda: reference.training)
    begun = time.monotonic()
    reference.wait()
    span = time.monotonic() - begun
    if reference.codes != [0] * args.ranks:
        print(reference.tail(), file=sys.stderr)
        return 1
    print(
        f'{args.model}, {args.ranks} ranks, {args.workers} loader processes each, '
        f'{args.iterations} iterations in {span:.1f} s, files in {folder}'
    )
    print(_row(COLUMNS), flush=True)
    equal = 0
    for run in range(args.runs):
        draw = random.Random(f'{args.seed}/{args.model}/{args.ranks}/{run}')
        result = interrupted_run(
            folder / f'run_{run}', folder / 'reference', option_file, span / args.iterations,
            args.iterations, args.kills, draw, **settings,
        )  # fmt: skip
        equal += result['result'] == 'equal'
        print(_row((run, *(result[name] for name in COLUMNS[1:]))), flush=True)
    print(f'{equal} of {args.runs} runs end with the bits of the uninterrupted one')
    return int(equal < args.runs)


def interrupted_run(
    folder: Path,
    reference: Path,
    option_file: Path,
    step: float,
    iterations: int,
    kills: int,
    draw: random.Random,
    *,
    ranks: int = 1,
    fork: bool = False,
) -> dict[str, str]:
    """The columns of the table for one run that is killed ``kills`` times and then finished;
    ``step`` seconds take the iterations of the uninterrupted one, ``draw`` gives the moments.
    """
    begun, killed_at, victims, resumed_at, outputs = time.monotonic(), [], [], [], []
    for _ in range(kills):
        training = Training(folder, option_file, ranks=ranks, fork=fork)
        victim, last = draw.randrange(ranks), draw.randrange(iterations)
        delay = draw.uniform(0, 3 * step)
        if training.wait(lambda it=training, k=last: it.training and it.iteration >= k):
            deadline = time.monotonic() + delay
            if training.wait(lambda until=deadline: time.monotonic() >= until):
                training.kill(victim)
        training.wait()  # the other ranks notice and end by themselves
        killed_at.append(training.iteration if training.codes[victim] else 'finished')
        victims.append(victim)
        resumed_at.append(training.resumed_at)
        outputs.append(training.output)
    training = Training(folder, option_file, ranks=ranks, fork=fork)
    training.wait()
    resumed_at = [*resumed_at[1:], training.resumed_at]
    passed_over = re.findall(
        r'(\d+\.state) (?:is|has|cannot)', '\n'.join((*outputs, training.output))
    )
    files, result = compare(folder, reference)
    if training.codes != [0] * ranks:
        result = f'exit status {training.codes}: {training.tail(400)}'
    return {
        'killed at': _list(killed_at), 'rank': _list(victims),
        'resumed at': _list('start' if r is None else r for r in resumed_at),
        'passed over': _list(passed_over) or '-', 'files': str(files), 'result': result,
        'seconds': f'{time.monotonic() - begun:.1f}',
    }  # fmt: skip


def compare(run: Path, reference: Path) -> tuple[int, str]:
    """Compares weight files of two experiments: their number, and ``'equal'`` or what differs."""
    folders = [root / 'experiments' / 'run' / 'models' for root in (run, reference)]
    names = [{path.name for path in folder.glob('*.pth')} for folder in folders]
    if names[0] != names[1]:
        return len(names[0]), f'other files: {sorted(names[0] ^ names[1])}'
    for name in sorted(names[0]):
        first, second = (flat(torch.load(f / name, weights_only=True)) for f in folders)
        if first.keys() != second.keys():
            return len(names[0]), f'{name}: other keys'
        for key, value in first.items():
            other = second[key]
            same = torch.equal(value, other) if torch.is_tensor(value) else value == other
            if not same:
                return len(names[0]), f'{name}: {key} differs'
    return len(names[0]), 'equal'


def flat(value: object, prefix: str = '') -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, item in value.items()
        for name, leaf in flat(item, f'{prefix}/{key}').items()
    }


def _list(values) -> str:
    return ', '.join(map(str, values))


def _row(values) -> str:
    widths = (4, 12, 5, 12, 12, 6, 8, 8)
    return ' '.join(f'{value!s:<{width}}' for value, width in zip(values, widths, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', choices=MODELS, default='phase1')
    parser.add_argument('--runs', type=int, default=1, help='interrupted runs (1)')
    parser.add_argument('--kills', type=int, default=1, help='kills of each run (1)')
    parser.add_argument('--ranks', type=int, default=1, help='processes of a training (1)')
    parser.add_argument('--workers', type=int, default=1, help='loader processes per rank (1)')
    parser.add_argument('--iterations', type=int, default=40, help='length of a training (40)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (0)')
    parser.add_argument(
        '--fork', action='store_true', help='start trainings from a process that imported all'
    )
    parser.add_argument('--folder', help='where the files go (default: a temporary folder)')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
