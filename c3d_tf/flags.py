# SPDX-License-Identifier: Apache-2.0
"""The flags, grouped by verb: what a flagfile may say. Only main reads their values."""

import os

from absl import flags

from c3d_tf.common import files

# The order of the help text, and what each verb leaves.
VERBS = {
    'prepare': 'videos and lists → records, index.json, mean.npy, skipped.jsonl in --records',
    'train': 'records → model.keras, checkpoints, TensorBoard curves, train.json in --workdir',
    'evaluate': 'records and weights → evaluate.json and confusion.png in --workdir',
    'study': 'records → several networks trained alike: study.json and study.png in --workdir',
    'predict': 'a video, or live input → its top classes, and when they happen; --render draws them',
    'features': 'videos or records → descriptors of any layer in --output',
    'svm': 'descriptors and lists → a linear SVM: svm.json, figures and a projector in --workdir',
    'similarity': 'descriptors and pairs of videos → same action or not: similarity.json, roc.png '
                  'in --workdir',
    'visualize': 'what excites feature maps, what speaks for a class, the filters → figures/ in --workdir',
    'report': 'what a run left → one HTML page, report.html in --workdir',
    'import_weights': 'a file of Caffe, PyTorch, Keras or TensorFlow 1 → an artefact, --weights',
    'export': 'weights → a SavedModel for serving in --export_dir/<n>',
    'benchmark': 'how fast every stage is on this machine → benchmark.json in --workdir',
}
SHARED = 'all verbs'


class _Size(flags.ArgumentParser):
    """Parses 128x171 to (128, 171): height first."""

    syntactic_help = 'HEIGHTxWIDTH'

    def parse(self, argument):
        if isinstance(argument, tuple):
            return argument
        parts = str(argument).split('x')
        if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
            raise ValueError('expected HEIGHTxWIDTH in pixels, e.g. 128x171')
        return tuple(int(part) for part in parts)

    def flag_type(self):
        return 'size'


class _SizeSerializer(flags.ArgumentSerializer):

    def serialize(self, value):
        return f'{value[0]}x{value[1]}'


class Flags:
    """One set of flags with their verbs; `values` are absl's."""

    def __init__(self):
        self.values = flags.FlagValues()
        self.values.set_gnu_getopt(True)
        self.verbs = {}  # flag → the verbs it belongs to, or (SHARED,)
        self._define()

    def _add(self, verbs: str, kind, name: str, default, text: str, **options) -> None:
        kind(name=name, default=default, help=text, flag_values=self.values, **options)
        own = verbs.split()
        own += ['study'] if 'train' in own else []  # it trains
        self.verbs[name] = tuple(own) or (SHARED,)

    def _define(self) -> None:
        add = self._add
        string, integer, real = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
        boolean, listed, enum = flags.DEFINE_bool, flags.DEFINE_list, flags.DEFINE_enum

        add('', listed, 'mode', [], f'what to do, in this order: {", ".join(VERBS)}')
        add('', string, 'records', '', 'folder of the records')
        add('', string, 'workdir', '', 'folder of the run: weights, curves, results')
        add('', integer, 'seed', 0, 'of every random choice', lower_bound=0)
        add('', boolean, 'overwrite', False, 'do again what is there, even with other settings')
        add('', boolean, 'help', False, 'show this text; with --mode=VERB only its flags',
            short_name='h')
        add('', boolean, 'version', False, 'show the version')
        add('', enum, 'completion', '', 'print a script that completes flags in this shell',
            enum_values=['', 'bash', 'zsh'])

        add('prepare svm similarity', string, 'dataset', 'folder', 'folder, list, csv, ucf101, hmdb51, '
            'sports1m, c3d_lst, moving_shapes or tfds:NAME; see docs/data.md')
        add('prepare svm similarity', string, 'videos', '', 'folder of the video files')
        add('prepare svm similarity', string, 'lists', '', "folder of the data set's official lists")
        add('prepare svm similarity', string, 'train_list', '', 'for list: text file, a line `path '
            'label` per video; for csv: header path,label[,start,end][,split][,group]')
        add('prepare svm similarity', string, 'val_list', '', 'the same for the val split')
        add('prepare svm similarity', string, 'test_list', '', 'the same for the test split')
        add('prepare svm similarity', integer, 'fold', 1, 'which of the three official splits of ucf101 '
            'and hmdb51', lower_bound=1, upper_bound=3)
        add('prepare svm similarity', string, 'groups', '', 'CSV or TSV with a header: a video and its '
            'group in the first two columns')
        add('prepare svm similarity', string, 'group_regex', '', 'first match in the file stem is the '
            'group that stays on one side of a split; empty: every video is a group')
        add('prepare svm similarity', real, 'val_fraction', 0.0, 'share of training groups kept for '
            'validation')
        add('prepare svm similarity', real, 'test_fraction', 0.2, 'for folder: share of groups kept for '
            'the test, where there are no train and test folders')
        add('prepare import_weights', self._size, 'frame_size', (128, 171), 'frames are resized to '
            'this, aspect not kept')
        add('prepare', enum, 'frame_format', 'jpeg', 'jpeg (quality 95) or png',
            enum_values=['jpeg', 'png'])
        add('prepare', integer, 'clips_per_video', 0, 'random spans kept of a training video; 0: all of '
            'it', lower_bound=0)
        add('prepare', integer, 'test_clips_per_video', 0, 'the same for videos of other splits',
            lower_bound=0)
        add('prepare', real, 'clip_seconds', 2.0, 'length of such a span', lower_bound=0.0)
        add('prepare features svm similarity', integer, 'max_failures', 0, 'videos that may be broken '
            'or missing; -1: any number', lower_bound=-1)
        add('prepare features', integer, 'num_workers', 0, 'processes that decode; 0: one a core',
            lower_bound=0)
        add('prepare features', real, 'video_timeout', 60.0, 'seconds without a frame after which a '
            'file is given up', lower_bound=0.1)
        add('prepare features', enum, 'runner', 'local', 'local: processes of this machine; beam: any '
            'engine of Apache Beam, see docs/beam.md', enum_values=['local', 'beam'])
        add('prepare features', listed, 'beam_options', [], 'of Beam and its engine, e.g. '
            '--runner=DaskRunner,--dask_npartitions=8')

        add('train', string, 'model', 'c3d', 'c3d, c3d_bn, depth_1, depth_3, depth_5, depth_7, '
            'increasing, decreasing or res3d_18')
        add('train', real, 'width', 1.0, 'factor on filters and hidden units', lower_bound=0.01)
        add('train', boolean, 'batch_norm', False, 'batch normalisation, not in the paper; c3d_bn and '
            'res3d_18 always have it')
        add('train', enum, 'initializer', 'caffe', 'caffe (the paper) or he',
            enum_values=['caffe', 'he'])
        add('train', enum, 'head', 'fc', 'fc (fc6 and fc7, the paper) or pool (average, for little '
            'data)', enum_values=['fc', 'pool'])
        add('train', real, 'dropout', 0.5, 'share of units dropped', lower_bound=0.0, upper_bound=0.99)
        add('train predict features export', enum, 'precision', 'float32', 'of activations; weights are float32',
            enum_values=['float32', 'bfloat16', 'float16'])
        add('prepare train', integer, 'clip_length', 16, 'frames of a clip', lower_bound=1)
        add('train', integer, 'crop_size', 112, 'side of the square that the network sees',
            lower_bound=1)
        add('train', integer, 'stride', 1, "the video's frames from one of a clip to the next",
            lower_bound=1)
        add('train import_weights', string, 'mean', 'volume', 'volume (the paper), channel, none, a '
            'number, or an .npy; for import_weights: .binaryproto, .npy or .npy.bz2, three numbers, a '
            'number, or none')
        add('train', boolean, 'motion', False, "the network sees what moves alone: each clip less its own mean "
            'over time, all at one strength')
        add('train', enum, 'train_clips', 'random', 'an epoch takes one random clip of each record, or '
            'all clips that follow one another', enum_values=['random', 'all'])
        add('train', boolean, 'flip', True, 'mirror half of the clips')
        add('train', boolean, 'random_crop', True, 'crop anywhere instead of the centre')
        add('train', enum, 'short', 'loop', 'a video shorter than a clip: start over, hold its last '
            'frame, or leave it out', enum_values=['loop', 'repeat_last', 'drop'])
        add('train', integer, 'max_stride', 0, 'draw the stride of each clip up to this; 0: always '
            '--stride', lower_bound=0)
        add('train', real, 'min_scale', 1.0, 'crop squares from this share of the frame to all of it, '
            'resized; 1: crop --crop_size as it is', lower_bound=0.05, upper_bound=1.0)
        add('train', real, 'colour', 0.0, 'change brightness, contrast and saturation by up to this '
            'share', lower_bound=0.0, upper_bound=0.9)
        add('train', integer, 'rand_augment', 0, 'changes of looks or place drawn for each clip, the '
            'same for all its frames (RandAugment); 0: none', lower_bound=0)
        add('train', real, 'rand_magnitude', 7.0, 'for --rand_augment: how strong, 0 to 10',
            lower_bound=0.0, upper_bound=10.0)
        add('train', real, 'mixup', 0.0, 'alpha of MixUp; 0: none', lower_bound=0.0)
        add('train', integer, 'epochs', 16, 'passes over the training split', lower_bound=1)
        add('train', integer, 'steps', 0, 'updates in all; 0: --epochs decides', lower_bound=0)
        add('train', integer, 'batch_size', 30, 'clips an update over all devices', lower_bound=1)
        add('train', enum, 'optimizer', 'sgd', 'sgd (as Caffe means it) or adam',
            enum_values=['sgd', 'adam'])
        add('train', real, 'learning_rate', 0.003, 'the first rate', lower_bound=0.0)
        add('train', integer, 'base_batch_size', 0, 'scale the rate by batch_size over this; 0: take it '
            'as it is', lower_bound=0)
        add('train', enum, 'schedule', 'constant', 'constant, step or cosine',
            enum_values=['constant', 'step', 'cosine'])
        add('train', integer, 'decay_steps', 0, 'for step: updates between two decays', lower_bound=0)
        add('train', real, 'decay_rate', 0.1, 'for step: factor on the rate', lower_bound=0.0)
        add('train', integer, 'warmup_steps', 0, 'updates over which the rate rises', lower_bound=0)
        add('train', real, 'momentum', 0.9, 'of sgd', lower_bound=0.0, upper_bound=1.0)
        add('train', real, 'weight_decay', 0.0005, 'on kernels', lower_bound=0.0)
        add('train', real, 'bias_rate', 2.0, 'factor on the rate of biases, for sgd', lower_bound=0.0)
        add('train', real, 'clip_norm', 0.0, 'largest norm of the gradient; 0: any', lower_bound=0.0)
        add('train', integer, 'accumulate', 1, 'compute a batch in this many parts, to save memory',
            lower_bound=1)
        add('train', real, 'label_smoothing', 0.0, 'share of the target spread over all classes',
            lower_bound=0.0, upper_bound=0.99)
        add('train', enum, 'class_weights', 'none', 'none, or balanced: each class counts the same in '
            'an epoch', enum_values=['none', 'balanced'])
        add('train', real, 'ema', 0.0, 'momentum of the moving averages that become the weights; 0: '
            'none', lower_bound=0.0, upper_bound=0.99999)
        add('train', integer, 'patience', 0, 'end after this many epochs without a better validation; '
            '0: never', lower_bound=0)
        add('train', string, 'init_from', '', 'artefact whose weights are the start')
        add('train import_weights', listed, 'reinit', [], 'layers that start at random all the same')
        add('train', listed, 'freeze', [], 'layers that do not learn')
        add('train', real, 'max_loss_ratio', 0.0, 'go back to a checkpoint and past the batch where the loss '
            'is over this many times the median of the last 50, or no number; 0: end there if it is no number',
            lower_bound=0.0)
        add('train', integer, 'max_skips', 3, 'how often, at most', lower_bound=1)
        add('train', enum, 'strategy', 'default', 'default (one device), mirrored (all of this machine) or '
            'multi_worker (all machines that TF_CONFIG names; see docs/cluster.md)',
            enum_values=['default', 'mirrored', 'multi_worker'])
        add('train', real, 'worker_timeout', 600.0, 'for multi_worker: seconds that a worker waits for the '
            'others at the start', lower_bound=1.0)
        add('train', integer, 'checkpoint_every', 1000, 'steps between two checkpoints', lower_bound=1)
        add('train', integer, 'log_every', 50, "steps between two points of the curves", lower_bound=1)
        add('train', integer, 'histograms', 0, 'steps between two histograms of all weights in TensorBoard; '
            '0: none', lower_bound=0)
        add('train', integer, 'profile', 0, "steps of which a profiler's trace is written, after a few to "
            'warm up; 0: none', lower_bound=0)
        add('train', enum, 'watch', '', 'a split that is scored after each epoch for its curve alone: it '
            'chooses nothing', enum_values=['', 'test'])

        add('study', listed, 'models', [], 'the networks, each trained as --model would be')
        add('study', listed, 'seeds', ['0', '1', '2'], 'each network is trained from each; --seed is not '
            'used')

        add('evaluate predict features visualize export import_weights benchmark', string, 'weights', '',
            'artefact; empty: --workdir/model.keras; for import_weights: what is written')
        add('evaluate features similarity visualize', enum, 'split', 'test', 'of the records',
            enum_values=['train', 'val', 'test'])
        add('evaluate export', integer, 'clips', 10, 'clips a video, for random and uniform; for export: for its '
            'comparison with other runtimes', lower_bound=1)
        add('evaluate', enum, 'clip_choice', 'random', 'random (the paper), uniform, or all (every '
            '--step frames)', enum_values=['random', 'uniform', 'all'])
        add('evaluate predict features visualize', integer, 'step', 0, "frames between clips' starts; "
            "0: a clip's length, for features half of it (the paper)", lower_bound=0)
        add('evaluate', enum, 'crops', 'centre', 'centre (the paper), three along the longer side, or '
            'ten (corners and centre, each also mirrored)', enum_values=['centre', 'three', 'ten'])
        add('evaluate', listed, 'scores', [], 'scores.npz of other evaluations: read again, or several '
            'averaged, instead of running a network')
        add('evaluate features benchmark', integer, 'eval_batch_size', 16, 'clips a batch',
            lower_bound=1)

        add('predict features visualize benchmark', string, 'input', '', 'a video file; for predict also '
            'camera:0, rtsp://… or http://…; for features and visualize also a folder, a glob, or a .txt list '
            'of paths')
        add('predict', boolean, 'json', False, 'print one JSON object; of live input one a line')
        add('predict', string, 'render', '', 'an MP4 to write: the video with its classes over time below it')
        add('predict', boolean, 'heatmap', False, 'lay Grad-CAM over that video')
        add('predict', real, 'duration', 0.0, 'seconds of live input; 0: until it ends, or Ctrl-C',
            lower_bound=0.0)
        add('predict export', integer, 'top_k', 5, 'classes that are named', lower_bound=1)

        add('features visualize export', listed, 'layers', [], 'for features: whose output is kept, e.g. '
            'fc6,prob; empty: fc6; convolutions and pools as (channels, frames, height, width). For '
            'visualize: convolutions and pools; empty: the last convolution. For export: what every signature '
            'gives beside the classes')
        add('features', enum, 'format', 'npz', 'npz (a file a video), hdf5 (one file), or caffe (the '
            "original's blobs, a file a clip and layer)", enum_values=['npz', 'hdf5', 'caffe'])
        add('features', enum, 'pool', 'mean', "how clips become the video's descriptor, L2-normalised: "
            'mean (the paper), max, or conv_pooling (max over clips and frames)',
            enum_values=['mean', 'max', 'conv_pooling'])
        add('features', string, 'output', '', 'folder of the descriptors')
        add('features', real, 'lock_timeout', 600.0, 'seconds without a sign of life after which '
            "another process's video is taken over", lower_bound=1.0)

        add('svm similarity', listed, 'features', [], 'folders that --mode=features wrote, or .npz, '
            '.csv or .h5 files; several are concatenated')
        add('svm similarity', real, 'C', 1.0, "liblinear's cost of an error; 0: cross-validated on the "
            'training part', lower_bound=0.0)
        add('svm', listed, 'layer', ['fc6'], 'of --features: one name for all, or one for each')
        add('svm', listed, 'folds', [], 'official splits of ucf101 and hmdb51 whose mean is the result, '
            'e.g. 1,2,3; empty: --fold alone')
        add('svm', boolean, 'leave_one_out', False, 'test every group (every video, where there are '
            'none) by all others')
        add('svm', string, 'frames_labels', '', 'CSV of video, frame, object: classify clips by the '
            'object of most of their frames')
        add('svm', listed, 'pca', ['10', '50', '100', '200', '500'], 'dimensions of the accuracy curve; '
            'empty: none')
        add('svm evaluate', integer, 'embed', 2000, "clips in the t-SNE figure and the projector; for evaluate: "
            "videos in TensorBoard's projector; 0: none", lower_bound=0)

        add('similarity', string, 'pairs', '', 'CSV with the header a,b,same,fold, or View2.mat of '
            'ASLAN; empty: drawn from the labels of --records or --dataset and written to pairs.csv in '
            '--workdir')
        add('similarity', listed, 'similarity_layers', ['prob', 'fc7', 'fc6', 'pool5'], 'whose vectors '
            'are compared')
        add('similarity', integer, 'pair_folds', 10, 'for drawn pairs: folds, each with classes of its '
            'own', lower_bound=2)
        add('similarity', integer, 'pairs_per_fold', 600, 'for drawn pairs: half of one action, half of '
            'two', lower_bound=2)

        add('visualize', listed, 'what', ['deconvolution', 'gradcam', 'filters'], 'what is drawn')
        add('visualize', listed, 'units', [], 'feature maps by number, from 0; empty: those with the '
            'strongest activations')
        add('visualize', integer, 'maps', 4, 'how many feature maps are taken then', lower_bound=1)
        add('visualize', integer, 'top', 4, 'clips a picture: those that excite a feature map most',
            lower_bound=1)
        add('visualize', string, 'label', '', 'the class that Grad-CAM explains; empty: what each clip '
            'was taken for')

        add('import_weights', string, 'source', '', 'the file: .caffemodel, .pth, .pt, .pickle, '
            '.safetensors, .h5, .npy, or a TensorFlow 1 checkpoint')
        add('import_weights', string, 'labels', '', 'text file, a class name a line')
        add('import_weights', enum, 'channel_order', '', 'of the images that the weights expect',
            enum_values=['', 'bgr', 'rgb'])
        add('import_weights', enum, 'pool5', '', 'where its windows start: aligned (Caffe: 0, 2, 4, 6) '
            'or shifted (ports that pad both sides: -1, 1, 3, 5)',
            enum_values=['', 'aligned', 'shifted'])
        add('import_weights', boolean, 'flip_time', None, 'turn the kernels round in time: for files '
            'that came through Theano')
        add('import_weights', enum, 'fc6_order', '', "how the file's network flattens pool5, channels "
            'or cells first; empty: chw where kernels have their outputs first (Caffe, PyTorch), else '
            'hwc', enum_values=['', 'chw', 'hwc'])
        add('import_weights', boolean, 'dry_run', False, 'print the table, write nothing')

        add('predict features export', enum, 'runtime', 'tensorflow', 'what runs the network: tensorflow, openvino '
            'or int8 (OpenVINO with what export made); for export also onnx; see docs/runtimes.md',
            enum_values=['tensorflow', 'onnx', 'openvino', 'int8'])
        add('predict features export', string, 'export_dir', '', "folder of the model's versions; for predict and "
            'features: where the int8 network is')
        add('export', integer, 'max_clips', 64, 'clips of one example that are scored', lower_bound=1)
        add('export', string, 'check', '', 'inspect and time this exported folder, and export nothing')

        add('benchmark', listed, 'stages', [], 'forward, train_step, prepare, memory, features, '
            'features_memory, pytorch, startup; empty: all')
        add('benchmark', enum, 'table', '', 'runtime: fc6 from video files (--input, or ones it makes) '
            'beside dense optical flow, as Table 6 of the paper; instead of the stages',
            enum_values=['', 'runtime'])
        add('benchmark', string, 'torch_python', '', 'a Python that has PyTorch, for the stage pytorch; '
            'empty: without it')

    def _size(self, *, name, default, help, flag_values):
        flags.DEFINE(_Size(), name, default, help, flag_values, _SizeSerializer())

    def of(self, verb: str) -> list[str]:
        """Returns the names of the verb's flags, the shared ones first."""
        return [name for name, verbs in self.verbs.items() if SHARED in verbs or verb in verbs]

    def write(self, path: str, verb: str) -> None:
        """Writes a flagfile that repeats what the verb was called with."""
        lines = [f'# Repeats this run: python -m c3d_tf.main --flagfile={path}', f'--mode={verb}']
        for name in self.of(verb):
            flag = self.values[name]
            if name not in ('mode', 'help', 'version', 'overwrite') and flag.value not in (None, '', []):
                lines.append(flag.serialize())
        files.remove_leftovers(os.path.dirname(path), os.path.basename(path))
        files.write_text(path, '\n'.join(lines) + '\n')
