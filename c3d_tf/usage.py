# SPDX-License-Identifier: Apache-2.0
"""What the front door says of itself: the help text, and completion for shells."""

import re
import textwrap

from c3d_tf import flags

DOOR = 'python -m c3d_tf.main'
EXAMPLES = {
    'prepare': '--dataset=ucf101 --videos=UCF-101 --lists=ucfTrainTestlist --records=records',
    'train': '--records=records --workdir=runs/first --batch_size=30 --epochs=16',
    'evaluate': '--records=records --workdir=runs/first --clip_choice=uniform',
    'study': '--records=records --workdir=runs/depth --models=depth_1,depth_3 --seeds=0,1,2',
    'predict': '--workdir=runs/first --input=VIDEO.mp4',
    'features': '--weights=sports1m.keras --input=FOLDER --layers=fc6 --output=features',
    'svm': '--features=features --dataset=ucf101 --videos=UCF-101 --lists=ucfTrainTestlist --folds=1,2,3 '
           '--workdir=runs/svm',
    'similarity': '--features=features --pairs=View2.mat --workdir=runs/aslan',
    'visualize': '--weights=sports1m.keras --input=FOLDER --layers=conv5b --workdir=runs/look',
    'report': '--workdir=runs/first',
    'import_weights': '--source=FILE.caffemodel --mean=FILE.binaryproto --weights=sports1m.keras',
    'export': '--workdir=runs/first --export_dir=export/first',
    'benchmark': '--workdir=runs/benchmark',
}


def help_text(known: flags.Flags, verbs: list[str]) -> str:
    """Returns the help text: of all verbs, or of the named ones."""
    lines = ['C3D on TensorFlow and Keras: train, evaluate, use and serve the network of Tran et al. '
             '(ICCV 2015).', '', f'{DOOR} --flagfile=experiments/quickstart.flags [--mode=VERB,…] '
             '[--flag=value …]', '']
    lines += [f'  {verb:14} {what}' for verb, what in flags.VERBS.items() if not verbs or verb in verbs]
    lines += ['', 'A flagfile is a complete experiment: a line a flag, later ones win, so flags after it '
              'change it.', 'A finished step is not done twice; a stopped one goes on.',
              'Exit codes: 0 done, 1 failed, 2 wrong use, 75 interrupted (the same command goes on).',
              'Completion: source <(c3d_tf --completion=bash), or zsh.']
    shown = set()
    for title in (flags.SHARED, *(verbs or flags.VERBS)):
        lines += ['', f'{title}:']
        if title in EXAMPLES:
            example = textwrap.wrap(f'{DOOR} --mode={title} {EXAMPLES[title]}', 98, initial_indent='  ',
                                    subsequent_indent='    ', break_on_hyphens=False)
            lines.append(' \\\n'.join(example))  # as it may be pasted into a shell
        own = [name for name, verbs in known.verbs.items() if title in verbs]
        again = [name for name in own if name in shown]
        for name in own:
            if name not in shown:
                lines += _flag(known.values[name])
        if again:
            lines += textwrap.wrap(f'and from above: {", ".join(again)}', 100, initial_indent='  ',
                                   subsequent_indent='  ')
        shown |= set(own)
    return '\n'.join(lines)


def _flag(flag) -> list[str]:
    default = '' if flag.default in (None, '', []) else f' ({flag.default_as_str})'
    text = re.sub('^<.*?>: ', '', flag.help) + default.replace("'", '')
    return textwrap.wrap(text, 100, initial_indent=f'  --{flag.name:20} ', subsequent_indent=' ' * 25)


def completion(known: flags.Flags, shell: str) -> str:
    """Returns a script for bash or zsh that completes flags, verbs, choices and paths of `c3d_tf`."""
    choices = {'mode': list(flags.VERBS)}
    for name in known.verbs:
        found = [value for value in getattr(known.values[name].parser, 'enum_values', ()) if value]
        if found:
            choices[name] = found
    return (_bash if shell == 'bash' else _zsh)(known, choices)


def _bash(known: flags.Flags, choices: dict[str, list[str]]) -> str:
    names = ['--flagfile=']
    for name in known.verbs:
        names += [f'--{name}', f'--no{name}'] if known.values[name].boolean else [f'--{name}=']
    cases = [f'    --{name}=*) words="{" ".join(values)}" ;;' for name, values in choices.items()]
    return _BASH % {'cases': '\n'.join(cases), 'names': ' '.join(names)}


# Of a list, e.g. --mode=prepare,tr, the part after the last comma is completed. Bash takes what comes after
# "=" as a word of its own, and so is what is replied; a value without choices is taken for a path.
_BASH = r"""_c3d_tf() {
  local IFS=$'\n' line=${COMP_LINE:0:$COMP_POINT} word value words begun="" names="%(names)s"
  word=${line##* } value=${line##*=}
  case $word in
%(cases)s
    --*=*) COMPREPLY=($(compgen -f -- "$value")); compopt -o filenames 2>/dev/null; return ;;
    *) COMPREPLY=($(compgen -W "${names// /$IFS}" -- "$word")); compopt -o nospace 2>/dev/null; return ;;
  esac
  [[ $value == *,* ]] && begun=${value%%,*},
  COMPREPLY=($(compgen -P "$begun" -W "${words// /$IFS}" -- "${value##*,}"))
}
complete -F _c3d_tf c3d_tf"""


def _zsh(known: flags.Flags, choices: dict[str, list[str]]) -> str:
    specs = ['--flagfile=[an experiment]:file:_files']
    for name in known.verbs:
        flag = known.values[name]
        text = re.sub(r"[][':\\]", ' ', flag.help)
        if flag.boolean:
            specs += [f'--{name}[{text}]', f'--no{name}']
        elif name == 'mode':
            specs.append(f'--mode=[{text}]:verb:_sequence compadd - {" ".join(choices["mode"])}')
        else:
            specs.append(f'--{name}=[{text}]:value:' + (f'({" ".join(choices[name])})' if name in choices
                                                        else '_files'))
    return '\n'.join(['#compdef c3d_tf', '_c3d_tf() {', '  _arguments \\',
                      *(f"    '{spec}' \\" for spec in specs), '', '}', 'compdef _c3d_tf c3d_tf'])
