# SPDX-License-Identifier: Apache-2.0
"""Descriptors → linear SVM: accuracy on official splits, accuracy by PCA dimension, t-SNE.

Section 4 of the paper: the descriptor of a video is the L2-normalised mean of a layer over its clips,
several are concatenated, and liblinear learns a multi-class linear SVM on them.
"""

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
import sklearn

from c3d_tf import __version__
from c3d_tf.classifiers import linear_svm
from c3d_tf.common import console
from c3d_tf.common import errors
from c3d_tf.common import files
from c3d_tf.common import storage
from c3d_tf.data import datasets
from c3d_tf.data import feature_sets
from c3d_tf.data import samples as sampling
from c3d_tf.figures import embedding
from c3d_tf.figures import plots

RESULT = 'svm.json'
CONFUSION = 'confusion_svm.png'
COMPACTNESS = 'compactness'  # .json and .png


def svm(
    features: Sequence[str],
    workdir: str,
    *,
    folds: Sequence[datasets.Dataset] = (),
    records_dir: str = '',
    layers: Sequence[str] = ('fc6',),
    C: float = 1.0,  # pylint: disable=invalid-name
    leave_one_out: bool = False,
    frames_labels: str = '',
    pca: Sequence[int] = (10, 50, 100, 200, 500),
    embed: int = 2000,
    max_failures: int = 0,
    seed: int = 0,
    overwrite: bool = False,
) -> dict:
    """Trains and tests a linear SVM on each split; the result is their mean.

    Args:
      features: feature sets (see `feature_sets`); each is L2-normalised, then all are concatenated.
      workdir: gets svm.json, confusion_svm.png, compactness.json and .png, tsne.png and tensorboard/.
      folds: what is labelled how, from `datasets.load`: one data set for each of its official splits.
      records_dir: the same from records, where there are no `folds`.
      layers: of the feature sets that the features verb wrote: one for all, or one for each.
      C: liblinear's cost of an error; 0 chooses it in each training part, see `linear_svm.choose_cost`.
      leave_one_out: every group (without groups: every video) is tested by what all others teach; the
        folds and splits do not count. As for YUPENN and Maryland.
      frames_labels: a CSV of video, frame, object: clips are classified by the object that most of
        their frames show; see `samples.objects_of_clips`.
      pca: dimensions of the accuracy curve; empty for none. Not drawn with leave_one_out.
      embed: clips of the first split's test part in the t-SNE figure and in TensorBoard's projector,
        drawn at random; 0 for none.
      max_failures: listed videos without features that are tolerated; -1 for any number.
      seed: of the SVM's order of samples, of t-SNE, of the draw of clips.
      overwrite: replaces a result with other settings.

    Returns:
      the content of svm.json: accuracy (mean of the splits), per split, per class, of each feature set
      alone, protocol.

    Raises:
      errors.UsageError: features, lists and options do not fit each other.
      errors.RunError: more videos lack features than `max_failures`.
    """
    if not features:
        raise errors.UsageError('--features is not set: expected folders that --mode=features wrote, or '
                                'other feature files')
    if len(layers) not in (1, len(features)):
        raise errors.UsageError(f'--layer={",".join(layers)}: expected one name, or one for each of the '
                                f'{len(features)} --features')
    layers = tuple(layers) * (len(features) if len(layers) == 1 else 1)
    samples = sampling.of_datasets(folds) if folds else sampling.of_records(records_dir)
    vectors = [feature_sets.read(path, layer) for path, layer in zip(features, layers)]
    samples, names, missing = _with_features(samples, features, vectors, max_failures)
    if frames_labels:
        samples, blocks = _clip_blocks(samples, features, layers, names, frames_labels)
    else:
        blocks = [np.stack([own[found[name]] for name in samples.names])
                  for own, found in zip(vectors, names)]
    if leave_one_out:
        samples = sampling.leave_one_out(samples)
    _check(samples)
    protocol = _protocol(samples, features, layers, blocks, C, leave_one_out, frames_labels, pca, embed,
                         missing, seed)
    done = _existing(workdir, protocol, overwrite)
    if done is not None:
        return done

    sets = dict(zip(_titles(features, layers), blocks))
    whole = np.concatenate(blocks, axis=1)
    console.say(f'svm: {len(samples.names)} {samples.unit}, {whole.shape[1]} dimensions, '
                f'{len(samples.splits)} split(s)')
    result = linear_svm.over_splits(whole, samples, cost=C, seed=seed)
    curves = {}
    for title, block in sets.items() if len(sets) > 1 else ():
        alone = linear_svm.over_splits(block, samples, cost=C, seed=seed, what=f'svm, {title}')
        curves[title] = block, alone
    result['alone'] = [{'features': title, 'dimensions': block.shape[1], 'accuracy': alone['accuracy']}
                       for title, (block, alone) in curves.items()]
    if pca and not leave_one_out:
        together = 'all together' if curves else next(iter(sets))
        _compactness({**curves, together: (whole, result)}, samples, pca, seed, workdir)
    if embed:
        points = _points(samples, features, layers, names, blocks, embed, seed)
        result['embedding'] = embedding.write(workdir, dict(zip(sets, points)), samples, seed=seed)
    return _report(result, samples, protocol, workdir)


def _with_features(samples, features, vectors, max_failures):
    """Returns (samples that have features, [name → the set's own name], names that lack them)."""
    names = [feature_sets.match(samples.names, found) for found in vectors]
    missing = [(name, path) for name in samples.names for path, found in zip(features, names)
               if name not in found]
    lacking = dict(missing)
    if len(lacking) == len(samples.names):
        path = missing[0][1]
        raise errors.UsageError(
            f'{path}: no features for any of the {len(samples.names)} videos of {samples.dataset}; '
            f'it has {next(iter(vectors[features.index(path)]))}, …, the lists have '
            f'{samples.names[0]}, …')
    if 0 <= max_failures < len(lacking):
        name, path = missing[0]
        raise errors.RunError(
            f'{path}: no features for {len(lacking)} of the {len(samples.names)} listed videos, '
            f'{max_failures} are tolerated. The first: {name}\nRun --mode=features on them, or '
            f'--max_failures={len(lacking)} goes on without them.')
    return samples.keep(lambda i: samples.names[i] not in lacking), names, sorted(lacking)


def _clip_blocks(samples, features, layers, names, frames_labels):
    """Returns the clips that show an object, and their features, a block a set."""
    starts, blocks = {}, []
    for number, (path, layer, found) in enumerate(zip(features, layers, names)):
        own = {found[name]: name for name in samples.names}
        values = {}
        for name, clips in feature_sets.read_clips(path, own, layer):
            name = own[name]
            if number and not np.array_equal(starts[name], clips.start_frame):
                raise errors.UsageError(f'{path}: the clips of {name} start elsewhere than in '
                                        f'{features[0]}; make both with the same --step')
            starts[name] = clips.start_frame
            values[name] = clips.features
        blocks.append(values)
    spec = (feature_sets.protocol(features[0]) or {}).get('preprocessing', {})
    clips = sampling.objects_of_clips(samples, frames_labels, starts, stride=spec.get('stride', 1),
                                      clip_length=spec.get('clip_length', 16))
    return clips, [np.stack([values[name][clip] for name, clip in zip(clips.names, clips.clips)])
                   for values in blocks]


def _check(samples) -> None:
    """Stops where a class cannot be learnt, or a group is on both sides of a split."""
    first = samples.first_labels
    of_all = np.bincount(first, minlength=len(samples.class_names))
    if (of_all > 0).sum() < 2:
        raise errors.UsageError(f'{samples.dataset}: the {samples.unit} with features are of '
                                f'{(of_all > 0).sum()} class; expected two or more')
    for label in np.flatnonzero(of_all == 1):
        raise errors.UsageError(
            f'{samples.dataset}: class {samples.class_names[label]} has one of the {samples.unit} '
            f'({samples.names[list(first).index(label)]}); a class needs one to learn from and one to '
            'test. Add some, or take it out of the lists')
    groups = np.array(samples.groups)
    for title, train, test in samples.splits:
        if not len(train) or not len(test):
            raise errors.UsageError(f'{samples.dataset}, {title}: no {samples.unit} '
                                    f'{"to learn from" if not len(train) else "to test"}')
        leaks = sorted(set(groups[train]) & set(groups[test]))
        if leaks:
            raise errors.UsageError(f'{samples.dataset}, {title}: groups on both sides ({len(leaks)}): '
                                    f'{", ".join(leaks[:3])}: a test on them would measure memory')
        unknown = np.setdiff1d(first[test], first[train])
        if len(unknown):
            raise errors.UsageError(
                f'{samples.dataset}, {title}: class {samples.class_names[unknown[0]]} is tested, but '
                f'none of its {samples.unit} is there to learn from ({len(unknown)} such classes)')


def _protocol(samples, features, layers, blocks, cost, leave_one_out, frames_labels, pca, embed, missing,
              seed) -> dict:
    """Returns all that decides the result, as JSON keeps it."""
    return json.loads(json.dumps({
        'dataset': samples.dataset, 'unit': samples.unit, 'samples': len(samples.names),
        'classes': len(set(samples.first_labels.tolist())),
        'splits': 'leave one group out' if leave_one_out else
                  [[title, len(train), len(test)] for title, train, test in samples.splits],
        'lists_hash': files.text_hash(json.dumps(
            [samples.names, samples.labels, samples.groups,
             [[train.tolist(), test.tolist()] for _, train, test in samples.splits[:10]]])),
        'features': [{'path': path, 'layer': layer, 'dimensions': block.shape[1],
                      'sha256': hashlib.sha256(np.ascontiguousarray(block)).hexdigest(),
                      'protocol': feature_sets.protocol(path)}
                     for path, layer, block in zip(features, layers, blocks)],
        'descriptor': 'each set L2-normalised, then concatenated',
        'classifier': 'liblinear, L2-regularised squared hinge, one against the rest, with intercept',
        'C': cost or f'of {linear_svm.CHOICES_OF_C} by grouped cross-validation in training',
        'frames_labels': frames_labels, 'without_features': missing,
        'pca': 'not drawn' if leave_one_out else sorted(pca), 'embed': embed, 'seed': seed,
    }))


def _existing(workdir: str, protocol: dict, overwrite: bool) -> dict | None:
    """Returns the result that is there, if it was made by the same protocol."""
    path = os.path.join(workdir, RESULT)
    before = files.read_json(path)
    if before is None or overwrite:
        return None
    if before['protocol'] != protocol:
        raise errors.changed_settings(path, before['protocol'], protocol,
                                      'Give another --workdir, or --overwrite to replace it.')
    console.say(f'svm: {path} is up to date')
    _say(before)
    return before


def _titles(features, layers) -> list[str]:
    """Returns a short name of each set that tells it from the others."""
    short = [os.path.basename(storage.normpath(path)) for path in features]
    titles = [f'{name}, {layer}' if storage.isdir(path) else name
              for name, path, layer in zip(short, features, layers)]
    return titles if len(set(titles)) == len(titles) else [
        f'{path}, {layer}' for path, layer in zip(features, layers)]


def _compactness(curves: dict[str, tuple], samples, dims, seed: int, workdir: str) -> None:
    """Writes accuracy by PCA dimension of title → (descriptors, their result), as figure and JSON."""
    drawn = []
    for title, (values, result) in curves.items():
        costs = [split['C'] for split in result['splits']]
        curve = linear_svm.compactness(values, samples, dims, costs, seed)
        drawn.append({'features': title, **curve, 'all_dimensions': values.shape[1],
                      'accuracy_of_all': result['accuracy']})
        console.say(f'  {title}: ' + ' · '.join(
            f'{dim}-d {share:.3f}' for dim, share in zip(curve['dimensions'], curve['accuracy'])))
    with files.replacing(os.path.join(workdir, f'{COMPACTNESS}.png')) as temporary:
        plots.compactness(drawn, temporary, title=f'{samples.dataset}: linear SVM on PCA of descriptors')
    files.write_json(os.path.join(workdir, f'{COMPACTNESS}.json'), {
        'curves': drawn, 'splits': len(samples.splits),
        'protocol': 'PCA (centred, not whitened) and SVM learn from the training part of each split'})


def _points(samples, features, layers, names, blocks, most: int, seed: int) -> list[embedding.Points]:
    """Returns what is embedded of each set: clips, or videos where the set has no clips."""
    title, _, tested = samples.splits[0]
    if title in samples.groups:  # leave-one-out
        tested = np.arange(len(samples.names))
    points = []
    for path, layer, found, block in zip(features, layers, names, blocks):
        rng = np.random.default_rng(seed)  # the same clips of every set
        counts = {} if samples.clips is not None else feature_sets.clip_counts(
            path, [found[samples.names[i]] for i in tested])
        if not sum(counts.values()):
            chosen = np.sort(rng.permutation(tested)[:most])
            own = [samples.names[i] for i in chosen]
            points.append(embedding.Points(block[chosen], samples.unit, own, None,
                                           samples.first_labels[chosen]))
            continue
        clips = [(i, clip) for i in tested for clip in range(counts[found[samples.names[i]]])]
        wanted = {}
        for number in np.sort(rng.permutation(len(clips))[:most]):
            wanted.setdefault(clips[number][0], []).append(clips[number][1])
        sources = {found[samples.names[i]]: own for i, own in wanted.items()}
        read = [(clips.features[sources[name]], clips.start_frame[sources[name]])
                for name, clips in feature_sets.read_clips(path, sources, layer)]
        values, starts = (np.concatenate(column) for column in zip(*read))
        owners = np.repeat(list(wanted), [len(own) for own in wanted.values()])
        points.append(embedding.Points(values, 'clips', [samples.names[i] for i in owners], starts,
                                       samples.first_labels[owners]))
    return points


def _report(result: dict, samples, protocol: dict, workdir: str) -> dict:
    result |= {'protocol': protocol, 'class_names': list(samples.class_names),
               'versions': {'c3d_tf': __version__, 'scikit-learn': sklearn.__version__}}
    with files.replacing(os.path.join(workdir, CONFUSION)) as temporary:
        plots.confusion(np.array(result['confusion']), samples.class_names, temporary,
                        title=f'{samples.dataset}, linear SVM: accuracy {result["accuracy"]:.3f}')
    files.write_json(os.path.join(workdir, RESULT), result)  # last: it says "complete"
    _say(result)
    console.say(f'svm: wrote {os.path.join(workdir, RESULT)} and the figures beside it')
    return result


def _say(result: dict) -> None:
    protocol = result['protocol']
    each = ''
    if 1 < len(result['splits']) <= linear_svm.OFFICIAL:
        each = ' = mean of ' + ', '.join(f'{split["accuracy"]:.3f}' for split in result['splits'])
    console.say(f'  accuracy {result["accuracy"]:.3f}{each} · mean class accuracy '
                f'{result["mean_class_accuracy"]:.3f}')
    for one in result['alone']:
        console.say(f'    {one["features"]} alone ({one["dimensions"]}-d): {one["accuracy"]:.3f}')
    console.say(f'  {protocol["dataset"]}: {protocol["samples"]} {protocol["unit"]}, '
                f'{protocol["classes"]} classes, chance {1 / protocol["classes"]:.3f}')
    if not all(split['converged'] for split in result['splits']):
        console.say(f'  liblinear did not converge in {linear_svm.MAX_ITERATIONS} iterations; '
                    'try a smaller --C')
    if protocol['without_features']:
        console.say(f'  left out: {len(protocol["without_features"])} listed videos without features')
