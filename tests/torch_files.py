# SPDX-License-Identifier: Apache-2.0
"""Writes weights with the real PyTorch: a program for an environment that has it (make test-torch).

    python tests/torch_files.py ARRAYS.npz FOLDER

ARRAYS.npz holds state_dict arrays under 'KIND:name'. Leaves FOLDER/KIND.{zip.pth,legacy.pth,safetensors}.
"""

import collections
import pathlib
import sys

import numpy as np
import safetensors.torch
import torch


def main() -> None:
    arrays, folder = np.load(sys.argv[1]), pathlib.Path(sys.argv[2])
    kinds = collections.defaultdict(collections.OrderedDict)
    for key in arrays:
        kind, name = key.split(':')
        kinds[kind][name] = torch.from_numpy(arrays[key])
    for kind, state in kinds.items():
        torch.save(state, folder / f'{kind}.zip.pth')
        # A checkpoint of a training run, in the older format.
        optimiser = {'state': {0: {'momentum_buffer': torch.ones(3)}}, 'param_groups': [{'lr': 0.1}]}
        torch.save({'epoch': 7, 'state_dict': state, 'optimizer': optimiser}, folder / f'{kind}.legacy.pth',
                   _use_new_zipfile_serialization=False)
        safetensors.torch.save_file(state, folder / f'{kind}.safetensors')


if __name__ == '__main__':
    main()
