"""The start of a run: its command line and option file, in place of ``basicsr.utils.options``."""

import argparse
import multiprocessing
import os
import random
import sys
from pathlib import Path

import torch
from basicsr.utils import dist_util, get_root_logger, set_random_seed
from torch.utils.data import Dataset

from unfoldldm_basicsr.common.option_files import apply_overrides, build_parser, read_option_file
from unfoldldm_basicsr.compat.imports import load_data_only
from unfoldldm_basicsr.options.environment import open_datasets
from unfoldldm_basicsr.options.preflight import examine, project_hint
from unfoldldm_basicsr.options.run import process_count
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.weights.training_state import iterations_of


def parse_options(root_path: str, is_train: bool = True) -> tuple[dict, argparse.Namespace]:
    """Command line and option file to BasicSR's option dict.

    Differences from BasicSR: safe YAML, ``--force_yml`` executes nothing, the whole dict is checked
    before anything else happens (all problems at once, exit status 2), missing keys get defaults,
    random generators are seeded after ``--force_yml``, and one seed is drawn for all ranks when
    ``manual_seed`` is absent. Several processes without ``--launcher`` are refused, and ``num_gpu:
    auto`` means one GPU where the model uses one in each process and there is no launcher. A script
    with a loop of its own, whose file has no ``model_type``, is refused names of folders alone.
    """
    load_data_only()
    args = build_parser().parse_args()
    count = process_count('pytorch')
    if args.launcher == 'none' and count > 1:
        fault = (
            f'{count} processes were started (WORLD_SIZE is {count}), but without a launcher each '
            'would run alone, all of them in the same folder: add --launcher pytorch to the '
            'command. For a single process, start it without torchrun, or unset WORLD_SIZE.'
        )
        refuse([fault])
    try:
        options = read_option_file(args.opt)
        apply_overrides(options, args.force_yml or [])
    except ValueError as error:
        refuse([str(error)])
    name = options.get('name')
    if args.debug and isinstance(name, str) and not name.startswith('debug'):
        options['name'] = f'debug_{name}'
    # whether there are states to go on from; which one, or none, is decided later
    states = Path(root_path, 'experiments', str(options.get('name')), 'training_states')
    resuming = bool(iterations_of(states)) if args.auto_resume else None
    # train.py of BasicSR, and copies of it in projects, build a model
    own_loop = 'model_type' not in options and 'build_model' not in sys._getframe(1).f_globals
    start = {'resuming': resuming, 'launcher': args.launcher, 'strict': not args.no_strict}
    if own_loop:
        start['here'] = False  # its data are its own
    report = examine(options, args.opt, is_train, **start, later=True)
    for path in [*report.refused] if own_loop else ():
        if path.partition('.')[0] not in ('name', 'path'):  # which become folders
            report.warned[path] = report.refused.pop(path)
    refuse(report.problems)
    asked, options = options.get('num_gpu', 'auto'), report.run.opt  # translated and completed
    try:
        _start_processes(options, args.launcher)
    except ValueError as error:
        refuse([str(error)])
    progress.begin()
    progress.notes = (*report.notes, *report.warnings)
    gpus, tasks = torch.cuda.device_count(), os.environ.get('SLURM_STEP_NUM_TASKS', '1')
    if args.launcher == 'none' and tasks != '1':  # each may have an option file of its own
        progress.notes += (
            f'srun started {tasks} tasks, and without --launcher slurm each trains or tests alone: '
            'with one option file all of them in the same folder.',
        )
    if asked == 'auto' and options['num_gpu'] < gpus:
        command = f'torchrun --nproc_per_node={gpus} -m unfoldldm_basicsr.'
        progress.notes += (
            f'num_gpu: auto: one process uses one of the {gpus} GPUs. For all of them: '
            f'{command}{"train" if is_train else "test"} -opt FILE --launcher pytorch',
        )
    progress.seed_drawn = options['manual_seed'] is None
    _seed(options)
    options['auto_resume'] = args.auto_resume
    progress.built = open_datasets(report)  # seeded, for the pipeline to find
    refuse(report.problems)
    _complete_paths(options, root_path, is_train)
    if is_train and 'debug' in options['name']:
        if options.get('val') is not None:
            options['val']['val_freq'] = 8
        options['logger'].update(print_freq=1, save_checkpoint_freq=8)
    return options, args


def refuse(problems: list[str]) -> None:
    """Ends the run with status 2, as for a wrong command line; one rank of each machine speaks,
    since files that one lacks may lie on the others.

    Raises SystemExit: there are problems.
    """
    if not problems:
        return
    rank = os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', ''))
    if not rank.isdigit() or int(rank) == 0:
        count = f'{len(problems)} problems:\n' if len(problems) > 1 else ''
        hint = project_hint(problems)
        sys.stderr.write(count + '\n'.join(filter(None, [*problems, hint])) + '\n')
    raise SystemExit(2)


def _start_processes(options: dict, launcher: str) -> None:
    options['dist'] = launcher != 'none'
    if options['dist']:
        on_cpu = options['num_gpu'] == 0
        if on_cpu and sys.platform == 'linux' and not multiprocessing.get_start_method(True):
            # BasicSR would set spawn: safe beside CUDA, but every worker imports torch anew.
            multiprocessing.set_start_method('fork')
        params = dict(options.get('dist_params') or {})
        if on_cpu:
            params['backend'] = 'gloo'
        if launcher == 'pytorch':
            params.pop('port', None)  # torchrun chooses it
        dist_util.init_dist(launcher, **params)
    options['rank'], options['world_size'] = dist_util.get_dist_info()


def _seed(options: dict) -> None:
    if options['manual_seed'] is None:
        seed = [random.randint(1, 10000)]
        if options['world_size'] > 1:
            torch.distributed.broadcast_object_list(seed, src=0)
        options['manual_seed'] = seed[0]
    set_random_seed(options['manual_seed'] + options['rank'])


def dict2str(opt: dict, indent_level: int = 1) -> str:
    """Replaces ``basicsr.utils.options.dict2str``: BasicSR logs the options, here with notes."""
    text = dict2str.replaces(opt, indent_level)
    return text + ''.join(f'{note}\n' for note in progress.notes if indent_level == 1)


def build_dataset(dataset_opt: dict) -> Dataset:
    """Replaces ``basicsr.data.build_dataset``: takes a data set that the check has built."""
    for place, (section, dataset) in enumerate(progress.built):
        if section == dataset_opt:
            del progress.built[place]
            name = type(dataset).__name__
            get_root_logger().info(f'Dataset [{name}] - {dataset_opt["name"]} is built.')
            return dataset
    return build_dataset.replaces(dataset_opt)


def _complete_paths(options: dict, root_path: str, is_train: bool) -> None:
    kind = 'experiments' if is_train else 'results'
    root = os.path.join(root_path, kind, options['name'])
    folders = ('visualization', 'models', 'training_states') if is_train else ('visualization',)
    options['path'] |= {f'{kind}_root': root, 'log': root}
    options['path'] |= {name: os.path.join(root, name) for name in folders}
