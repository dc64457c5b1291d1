"""Runs option files of BasicSR twice, by BasicSR alone and with the plugin, and prints a table.

``python scripts/faults/stock_option_files.py BasicSR/options --work FOLDER`` reads every file below
``BasicSR/options``. Each is checked as it stands (``--no-data``). Then it is made small: networks,
crops, clips, two iterations and a validation; data of the layout that it names and random weights
under the names that it gives are written to FOLDER. So it is trained or tested, each time in a
process of its own.

Alike for both runs: the module that torchvision removed is there, and VGG19 has random weights
instead of a download. Without CUDA, ``cuda`` means the CPU; padded images are contiguous and clips
are copied, as on the way to a GPU; StyleGAN2's compiled activation is written in torch.
"""

import argparse
import contextlib
import glob
import multiprocessing
import os
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
import yaml

SIDE, CLIP = 216, ('000', '001')  # of images (216 can be divided by every scale); names of clips
NETWORKS = {
    'EDSR': {'num_feat': 8, 'num_block': 1},
    'MSRResNet': {'num_feat': 8, 'num_block': 1},
    'RRDBNet': {'num_feat': 8, 'num_block': 1},
    'RCAN': {'num_feat': 16, 'num_group': 1, 'num_block': 1},
    'SwinIR': {'img_size': 16, 'depths': [2], 'num_heads': [2], 'embed_dim': 12},
    'EDVR': {'num_feat': 16, 'num_extract_block': 1, 'num_reconstruct_block': 1},
    'BasicVSR': {'num_feat': 16, 'num_block': 1},
    'IconVSR': {'num_feat': 16, 'num_block': 1},
    'BasicVSRPlusPlus': {'mid_channels': 16, 'num_blocks': 1},
    'DUF': {'num_layer': 16},
    'HiFaceGAN': {'num_feat': 4},
    'StyleGAN2Generator': {'out_size': 32, 'num_style_feat': 16},
    'StyleGAN2Discriminator': {'out_size': 32},
    'VGGStyleDiscriminator': {'num_feat': 8},
    'UNetDiscriminatorSN': {'num_feat': 8},
    'HiFaceGANDiscriminator': {'num_feat': 8},
}
SIZES = {'EDVR': 64, 'BasicVSR': 256, 'IconVSR': 256, 'BasicVSRPlusPlus': 256}  # of ground truths


def shrunk(options: dict) -> dict:
    """The same keys with small values."""
    scale, train = options.get('scale', 1), options['datasets'].get('train', {})
    options['num_gpu'] = 0
    for key in ('network_g', 'network_d'):
        options.get(key, {}).update(NETWORKS.get(options.get(key, {}).get('type'), {}))
    side = 32 if scale == 1 else 16 * scale
    if options.get('network_d', {}).get('type') == 'VGGStyleDiscriminator':
        side = options['network_d'].get('input_size', 128)
    side = max(side, SIZES.get(options['network_g']['type'], 0))
    for section in (train, options):
        if 'gt_size' in section:
            section['gt_size'] = side
    if 'queue_size' in options:
        options['queue_size'] = 4
    if train:
        train.update({'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1})
        train.update({'num_frame': 5} if train.get('num_frame', 0) > 5 else {})
        options['train']['total_iter'] = 2
        options['logger'].update(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False)
        if 'val' in options:
            options['val']['val_freq'] = 2
    return options


# ---- data ---------------------------------------------------------------------------------------


def write_data(options: dict) -> None:
    """Writes what the sections of the data sets name, below the current folder."""
    scale = options.get('scale', 1)
    if options['network_g']['type'] == 'TOFlow':
        scale = 1  # its frames have been enlarged before
    side = SIZES.get(options['network_g']['type'], 64)
    for section in options['datasets'].values():
        kind, template = section['type'], section.get('filename_tmpl', '{}')
        clips = CLIP[: 1 if 'Test' in kind else 2]
        for key in ('meta_info_file', 'meta_info'):
            if section.get(key):
                write_names(Path(section[key]), kind, clips)
        for key in ('dataroot_gt', 'dataroot_lq'):
            if not section.get(key):
                continue
            root, factor = Path(section[key]), scale if key == 'dataroot_lq' else 1
            if 'Vimeo90K' in kind:
                for clip in clips:
                    write_images(root / '00001' / f'0{clip}', 'im{}', 7, side // factor, first=1)
            elif 'REDS' in kind or 'Video' in kind:
                for clip in clips:
                    count = 100 if clip == '001' and 'train' in str(root) else 7
                    write_images(root / clip, '{:08d}', count, side // factor)
            elif kind == 'FFHQDataset':
                write_lmdb(root, 32)
            elif root.suffix == '.lmdb':
                write_lmdb(root, SIDE // factor)
            else:
                name = template.replace('{}', '{:04d}') if key == 'dataroot_lq' else '{:04d}'
                write_images(root, name, 2, (224 if scale == 1 else SIDE) // factor)


def write_names(file: Path, kind: str, clips: tuple[str, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if 'Vimeo90K' in kind:
        lines = [f'00001/0{clip} 7 (64,64,3)' for clip in clips]
    elif 'REDS' in kind:
        lines = [f'{clip} 100 (64,64,3)' for clip in clips]
    elif 'Video' in kind:
        lines = [f'{clip} 7 (64,64,3)' for clip in clips]
    else:
        lines = [f'{number:04d}.png (1,1,3)' for number in range(2)]
    file.write_text('\n'.join(lines) + '\n')


def write_images(folder: Path, name: str, count: int, side: int, first: int = 0) -> None:
    """Smooth colours that move from image to image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        target = folder / f'{name.format(number)}.png'
        if not target.exists() or cv2.imread(str(target)).shape[0] != side:
            y, x = np.mgrid[:side, :side] / side
            waves = [np.sin(6 * x + number), np.cos(9 * y - number), np.sin(40 * x * y)]
            cv2.imwrite(str(target), (127 + 120 * np.stack(waves, -1)).astype(np.uint8))


def write_lmdb(root: Path, side: int) -> None:
    """The same images in BasicSR's LMDB."""
    if root.exists():
        return
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    folder = root.with_suffix('')
    write_images(folder, '{:04d}', 2, side)
    names = [f'{number:04d}' for number in range(2)]
    make_lmdb_from_imgs(str(folder), str(root), [f'{name}.png' for name in names], names)


def write_weights(options: dict) -> None:
    """Random weights under every name that the options give."""
    from basicsr.archs import basicvsr_arch, build_network, spynet_arch

    network = dict(options['network_g'])
    parts = {
        'spynet_path': spynet_arch.SpyNet,
        'edvr_path': lambda: basicvsr_arch.EDVRFeatureExtractor(
            2 * network['temporal_padding'] + 1, network['num_feat'], None
        ),
    }
    for key in parts.keys() & network.keys():
        save(network[key], parts[key]())
    start = options.get('path', {}).get('pretrain_network_g')
    if start:
        save(start, build_network(network))


def save(file: str, net: torch.nn.Module) -> None:
    """Writes the weights of a network as BasicSR does, with an average."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    weights = dict(net.state_dict())
    if type(net).__name__ == 'SpyNet':  # the released file has no buffers
        weights = {key: value for key, value in weights.items() if key not in ('mean', 'std')}
    torch.save({'params': weights, 'params_ema': weights}, file)


# ---- runs ---------------------------------------------------------------------------------------


def repair() -> None:
    """What both runs need on a machine like this one."""
    from torchvision.transforms import functional

    name = 'torchvision.transforms.functional_tensor'
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].rgb_to_grayscale = functional.rgb_to_grayscale
    vgg = torchvision.models.vgg
    vgg.vgg19 = lambda pretrained=False: types.SimpleNamespace(
        features=vgg.make_layers(vgg.cfgs['E'])
    )
    if torch.cuda.is_available():
        return
    zeros, pad = torch.zeros, torch.nn.functional.pad
    torch.zeros = lambda *shape, **how: zeros(
        *shape, **{**how, **({'device': 'cpu'} if how.get('device') == 'cuda' else {})}
    )
    torch.nn.functional.pad = lambda *args, **how: pad(*args, **how).contiguous()
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, device=None: self
    from basicsr.models.video_recurrent_model import VideoRecurrentModel
    from basicsr.ops.fused_act import fused_act

    feed = VideoRecurrentModel.feed_data
    VideoRecurrentModel.feed_data = lambda self, data: feed(
        self, {key: data[key].clone() for key in ('lq', 'gt')}
    )
    fused_act.fused_act_ext = types.SimpleNamespace(fused_bias_act=fused_bias_act)


def fused_bias_act(x, bias, result, act, order, slope, scale):
    """Leaky ReLU of ``x + bias`` times ``scale``, or (order 1) its derivative at ``result``."""
    if bias.numel():
        x = x + bias.view(1, -1, *[1] * (x.ndim - 2))
    return torch.where((result if order else x) > 0, x, x * slope) * scale


def in_child(job, *args) -> str:
    """Result of ``job(*args)``, a text, from a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=_send, args=(sender, job, *args))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return f'process ended with {child.exitcode}'
    finally:
        child.join()


def _send(sender, job, *args) -> None:
    try:
        text = job(*args)
    except SystemExit as stop:
        text = f'stopped: {stop.code}'
    except Exception as error:  # noqa: BLE001  (the result of a run that fails)
        text = f'{type(error).__name__}: {error}'
    sender.send(' '.join(text.split()))


def verdict(file: Path) -> str:
    """What the check says of a file as it stands."""
    from unfoldldm_basicsr.common.option_files import read_option_file
    from unfoldldm_basicsr.options.preflight import examine

    options = read_option_file(str(file))
    found = examine(options, file.name, 'train' in options['datasets'], here=False)
    return '; '.join(found.problems) or ('warned: ' + '; '.join(found.warnings)) * bool(
        found.warnings
    )


def run(file: Path, folder: Path, plugin: bool) -> str:
    """Trains or tests a file made small; empty if it came to its end."""
    import basicsr.test
    import basicsr.train
    from basicsr.utils.logger import initialized_logger

    options = shrunk(yaml.safe_load(file.read_text()))
    is_train = 'train' in options['datasets']
    folder.mkdir(parents=True)
    os.chdir(folder)
    (folder / 'x.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    with open('output.txt', 'w') as output, contextlib.redirect_stdout(output):
        os.dup2(output.fileno(), 2)
        with contextlib.suppress(TypeError, KeyError):  # a network that cannot be built
            write_data(options)
            write_weights(options)
        initialized_logger.clear()  # building a network has started it, without a file
        sys.argv = ['x', '-opt', 'x.yml']
        pipeline = basicsr.train.train_pipeline if is_train else basicsr.test.test_pipeline
        pipeline(str(folder))
    if is_train and not glob.glob('experiments/*/models/net_g_latest.pth'):
        return 'no weights were saved'
    log = ''.join(Path(name).read_text() for name in glob.glob('*/*/*.log'))
    missing = [name for name in options.get('val', {}).get('metrics', ()) if f'# {name}' not in log]
    return f'no {missing} in the log' if missing else ''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('options', type=Path, help='folder with option files')
    parser.add_argument('--work', type=Path, required=True, help='new folder for data and runs')
    parser.add_argument('--only', default='', help='part of the names of the files')
    args = parser.parse_args()
    multiprocessing.set_start_method('fork')
    files = [f for f in sorted(args.options.resolve().rglob('*.yml')) if args.only in str(f)]
    names, results = [str(f.relative_to(args.options.resolve())) for f in files], {}
    repair()
    for plugin in (False, True):
        if plugin:
            import unfoldldm_basicsr  # noqa: F401
        else:
            import basicsr.test
            import basicsr.train  # noqa: F401
        for file, name in zip(files, names, strict=True):
            folder = args.work.resolve() / ('plugin' if plugin else 'alone') / file.stem
            results[name, plugin] = in_child(run, file, folder, plugin)
            if plugin:
                results[name] = in_child(verdict, file)
    for name in names:
        row = (results[name, False] or 'runs', results[name] or 'accepted')
        print('|', name, '|', ' | '.join((*row, results[name, True] or 'runs')), '|')
    lost = [name for name in names if results[name, True] and not results[name, False]]
    print(f'{len(names)} files; run by BasicSR alone and not with the plugin: {len(lost)} {lost}')


if __name__ == '__main__':
    main()
