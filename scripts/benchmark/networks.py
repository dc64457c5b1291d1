"""Measures VLU-Net against a straightforward implementation of the same formulas.

    python scripts/benchmark/networks.py --sizes 128 256 --repeats 5 --out results/networks.csv

Both use the same parameters and run alternately in one process, so that other load on the machine
hits both. The straightforward side is plain PyTorch: prompts replicated over the batch, layer norm
in token layout, queries and keys normalised one by one. Times are medians in seconds; the speed-up
is the median of the ratios of neighbouring runs. Memory is the peak of the process above its state
before the call, each side in a process of its own (on CUDA: the allocator's peak). A training step
is forward, L1 loss and backward, without optimiser.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unfoldldm_basicsr.archs.vlunet_arch import VLUNet

Params = dict[str, Tensor]


def plain_layer_norm(p: Params, name: str, x: Tensor) -> Tensor:
    """B C H W -> tokens B HW C -> normalised -> B C H W."""
    b, c, h, w = x.shape
    tokens = x.reshape(b, c, h * w).transpose(1, 2).contiguous()
    mean = tokens.mean(-1, keepdim=True)
    variance = tokens.var(-1, keepdim=True, unbiased=False)
    tokens = (tokens - mean) / torch.sqrt(variance + 1e-5) * p[f'{name}.weight'] + p[f'{name}.bias']
    return tokens.transpose(1, 2).contiguous().reshape(b, c, h, w)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Restormer's channel attention as written in its paper."""
    b, c, h, w = v.shape
    q, k, v = (t.reshape(b, len(temperature), -1, h * w) for t in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return (attention @ v).reshape(b, c, h, w)


def depthwise(p: Params, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, p[f'{name}.weight'], padding=1, groups=x.shape[1])


def plain_self_attention(p: Params, name: str, x: Tensor) -> Tensor:
    qkv = depthwise(p, f'{name}.qkv_dwconv', F.conv2d(x, p[f'{name}.qkv.weight']))
    q, k, v = qkv.chunk(3, dim=1)
    out = plain_attention(q, k, v, p[f'{name}.temperature'])
    return F.conv2d(out, p[f'{name}.project_out.weight'])


def plain_block(p: Params, name: str, x: Tensor) -> Tensor:
    x = x + plain_self_attention(p, f'{name}.attn', plain_layer_norm(p, f'{name}.norm1.body', x))
    h = F.conv2d(plain_layer_norm(p, f'{name}.norm2.body', x), p[f'{name}.ffn.project_in.weight'])
    a, b = depthwise(p, f'{name}.ffn.dwconv', h).chunk(2, dim=1)
    return x + F.conv2d(F.gelu(a) * b, p[f'{name}.ffn.project_out.weight'])


def plain_gradient_step(p: Params, name: str, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    weights = F.linear(d, p[f'{name}.linear.weight'], p[f'{name}.linear.bias']).softmax(dim=1)
    prompts = p[f'{name}.prompt_param'].repeat(len(x), 1, 1, 1, 1)  # B N p S S
    prompt = (prompts * weights[:, :, None, None, None]).sum(dim=1)
    prompt = F.interpolate(prompt, x.shape[-2:], mode='bilinear')
    q, v = depthwise(p, f'{name}.phi.qv_dwconv', F.conv2d(x, p[f'{name}.phi.qv.weight'])).chunk(
        2, 1
    )
    k = depthwise(p, f'{name}.phi.k_dwconv', F.conv2d(prompt, p[f'{name}.phi.k.weight']))
    phi = plain_attention(q, k, v, p[f'{name}.phi.temperature'])
    phi = F.conv2d(phi, p[f'{name}.phi.project_out.weight'])
    return x - p[f'{name}.r'] * plain_self_attention(p, f'{name}.phit', phi - y)


def plain_stage(p: Params, name: str, x: Tensor, y: Tensor, d: Tensor) -> Tensor:
    x = plain_gradient_step(p, f'{name}.gradient_descent', x, y, d)
    block = 0
    while f'{name}.denoiser.blocks.{block}.norm1.body.weight' in p:
        x = plain_block(p, f'{name}.denoiser.blocks.{block}', x)
        block += 1
    return x


def plain_vlunet(p: Params, image: Tensor, d: Tensor) -> Tensor:
    """VLU-Net from its parameters; sides must be multiples of 8."""

    def down(name: str, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.conv2d(x, p[f'{name}.body.0.weight'], padding=1), 2)

    def up(name: str, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, p[f'{name}.body.0.weight'], padding=1), 2)

    x1 = F.conv2d(image, p['patch_embed.proj.weight'], padding=1)
    y1 = F.conv2d(image, p['patch_embed_i.proj.weight'], padding=1)
    x1 = plain_stage(p, 'encoder_level1', x1, y1, d)
    y2 = down('down1_2', y1)
    x2 = plain_stage(p, 'encoder_level2', down('down1_2', x1), y2, d)
    y3 = down('down2_3_i', y2)
    x3 = plain_stage(p, 'encoder_level3', down('down2_3', x2), y3, d)
    y = down('down3_4_i', y3)
    x = plain_stage(p, 'latent', down('down3_4', x3), y, d)
    x = F.conv2d(torch.cat([up('up4_3', x), x3], 1), p['reduce_chan_level3.weight'])
    y = F.conv2d(torch.cat([up('up4_3_i', y), y3], 1), p['reduce_chan_level3_img.weight'])
    x = plain_stage(p, 'decoder_level3', x, y, d)
    x = F.conv2d(torch.cat([up('up3_2', x), x2], 1), p['reduce_chan_level2.weight'])
    y = F.conv2d(torch.cat([up('up3_2_i', y), y2], 1), p['reduce_chan_level2_img.weight'])
    x = plain_stage(p, 'decoder_level2', x, y, d)
    x, y = torch.cat([up('up2_1', x), x1], 1), torch.cat([up('up2_1_i', y), y1], 1)
    x = plain_stage(p, 'decoder_level1', x, y, d)
    x = plain_stage(p, 'refinement', x, y, d)
    return F.conv2d(x, p['output.weight'], padding=1) + image


def build(device: str) -> tuple[VLUNet, Params]:
    torch.manual_seed(0)
    net = VLUNet().to(device)
    return net, dict(net.named_parameters())


def make_call(
    side: str, task: str, net: VLUNet, params: Params, image: Tensor, d: Tensor
) -> Callable:
    """The function to be timed; returns the output (forward) or None (training step)."""

    def forward() -> Tensor:
        return net(image, d) if side == 'package' else plain_vlunet(params, image, d)

    def infer() -> Tensor:
        with torch.no_grad():
            return forward()

    def train() -> None:
        net.zero_grad(set_to_none=True)
        F.l1_loss(forward(), torch.zeros_like(image)).backward()

    return infer if task == 'forward' else train


def timed(call: Callable, device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def process_memory(field: str) -> float:
    """MiB of this process (Linux): VmRSS now, VmHWM at its peak."""
    status = Path('/proc/self/status').read_text()
    return int(status.split(f'{field}:')[1].split()[0]) / 2**10


def peak_memory(connection, side: str, task: str, shape: tuple, device: str, threads: int) -> None:
    """Body of the measuring process: sends the growth of the peak in MiB."""
    torch.set_num_threads(threads)
    net, params = build(device)
    image, d = torch.rand(shape, device=device), torch.randn(shape[0], 512, device=device)
    small = image[..., :32, :32]
    make_call(side, task, net, params, small, d)()
    call = make_call(side, task, net, params, image, d)
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        connection.send((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = process_memory('VmRSS')
        call()
        connection.send(process_memory('VmHWM') - before)


def measure_memory(*args) -> float:
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=peak_memory, args=(sender, *args))
    process.start()
    sender.close()
    value = receiver.recv()
    process.join()
    return value


def processor_name(device: str) -> str:
    if device == 'cuda':
        return torch.cuda.get_device_name()
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=[128, 256])
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument(
        '--tasks', nargs='+', default=['forward', 'train'], choices=['forward', 'train']
    )
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--no-memory', action='store_true', help='skip the memory measurement')
    parser.add_argument('--out', type=Path, help='CSV file to write')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net, params = build(args.device)
    machine = f'{processor_name(args.device)}, {args.threads} threads, torch {torch.__version__}'
    rows = []
    for task in args.tasks:
        for size in args.sizes:
            shape = (args.batch, 3, size, size)
            image = torch.rand(shape, device=args.device)
            d = torch.randn(args.batch, 512, device=args.device)
            with torch.no_grad():
                error = (net(image, d) - plain_vlunet(params, image, d)).abs().max().item()
            calls = {
                side: make_call(side, task, net, params, image, d) for side in ('plain', 'package')
            }
            times: dict[str, list[float]] = {side: [] for side in calls}
            for call in calls.values():
                call()
            for _ in range(args.repeats):
                for side, call in calls.items():
                    times[side].append(timed(call, args.device))
            row = {
                'task': task,
                'batch': args.batch,
                'size': size,
                'max_difference': f'{error:.1e}',
            }
            for side in calls:
                row[f'{side}_s'] = f'{statistics.median(times[side]):.4f}'
            pairs = zip(times['plain'], times['package'], strict=True)
            row['speedup'] = f'{statistics.median(a / b for a, b in pairs):.2f}'
            if not args.no_memory:
                for side in calls:
                    peak = measure_memory(side, task, shape, args.device, args.threads)
                    row[f'{side}_MiB'] = f'{peak:.0f}'
            row['machine'] = machine
            rows.append(row)
            print('  '.join(f'{k} {v}' for k, v in row.items() if k != 'machine'), flush=True)
    print(machine)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
