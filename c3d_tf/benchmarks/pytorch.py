# SPDX-License-Identifier: Apache-2.0
"""The same C3D in PyTorch, as fast as its own advice makes it; a program of its own, for another Python.

    python pytorch.py WEIGHTS.npz CLIPS.npy THREADS [VIDEO …]

Needs torch (and OpenCV for the videos), nothing of this project. Prints a JSON line for each measurement.
"""

import json
import sys
import time

import numpy as np
import torch

BATCHES = (1, 4, 8, 16)
REPEATS = 3


class C3D(torch.nn.Module):
    """C3D with Caffe's pools; clips float32 [B, 3, 16, 112, 112] → logits."""

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()
        convolutions = [name for name in weights if name.startswith('conv') and name.endswith('weight')]
        layers = []
        for name in convolutions:
            weight, bias = weights[name], weights[name.replace('weight', 'bias')]
            layer = torch.nn.Conv3d(weight.shape[1], weight.shape[0], 3, padding=1)
            layer.load_state_dict({'weight': torch.from_numpy(weight), 'bias': torch.from_numpy(bias)})
            layers += [layer, torch.nn.ReLU(inplace=True)]
            if name.split('.')[0] in ('conv1a', 'conv2a', 'conv3b', 'conv4b', 'conv5b'):
                side = (1, 2, 2) if name.startswith('conv1a') else 2
                layers.append(torch.nn.MaxPool3d(side, side, ceil_mode=True))
        self.features = torch.nn.Sequential(*layers)
        dense = []
        for name in ('fc6', 'fc7', 'fc8'):
            weight, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({'weight': torch.from_numpy(weight), 'bias': torch.from_numpy(bias)})
            dense += [layer, torch.nn.ReLU(inplace=True)]
        self.classifier = torch.nn.Sequential(*dense[:-1])

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def rate(forward, clips: torch.Tensor) -> float:
    """Returns clips a second, the best of a few runs after one that does not count."""
    forward(clips)
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        forward(clips)
        times.append(time.perf_counter() - before)
    return len(clips) / min(times)


def by_the_book(forward, path: str) -> int:
    """Reads a video with OpenCV and calls the network clip by clip, every 8 frames; returns the clips."""
    import cv2

    window, count = [], 0
    capture = cv2.VideoCapture(path)
    while True:
        ok, image = capture.read()
        if not ok:
            break
        window.append(cv2.resize(image, (171, 128))[8:120, 29:141])
        if len(window) == 16:
            clip = np.stack(window).astype(np.float32) - 100
            forward(torch.from_numpy(clip.transpose(3, 0, 1, 2)[None]))
            count += 1
            del window[:8]
    return count


def main() -> None:
    weights, clips, threads, *videos = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(weights) as archive:
        model = C3D(dict(archive)).eval().to(memory_format=torch.channels_last_3d)
    clips = torch.from_numpy(np.load(clips)).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        print(json.dumps({'logits': model(clips[:1]).tolist(), 'torch': torch.__version__}), flush=True)
        if videos:
            by_the_book(model, videos[0])
            before = time.perf_counter()
            count = sum(by_the_book(model, path) for path in videos)
            print(json.dumps({'by_the_book': count / (time.perf_counter() - before)}), flush=True)
        for precision in ('float32', 'bfloat16'):
            if precision == 'bfloat16':
                model, clips = model.to(torch.bfloat16), clips.to(torch.bfloat16)
            for mode in ('eager', 'compiled'):
                forward = torch.compile(model, dynamic=False) if mode == 'compiled' else model
                for batch in BATCHES:
                    found = rate(forward, clips[:batch].contiguous(memory_format=torch.channels_last_3d))
                    cell = {'precision': precision, 'mode': mode, 'batch': batch, 'clips/s': found}
                    print(json.dumps(cell), flush=True)


if __name__ == '__main__':
    main()
