"""Print the shell's completion of this command line.

bash:  pagemerge completion bash > ~/.local/share/bash-completion/completions/pagemerge
zsh:   pagemerge completion zsh > "${fpath[1]}/_pagemerge"
fish:  pagemerge completion fish > ~/.config/fish/completions/pagemerge.fish
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from pagemerge.commands.grammar import CommandGrammar, Option, iter_commands

NAME = "completion"
HELP = "print completions for bash, zsh or fish"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> None:
    """Print them."""
    from pagemerge.commands import make_parser

    commands = list(iter_commands(make_parser()))
    render = {"bash": render_bash, "zsh": render_zsh, "fish": render_fish}[args.shell]
    sys.stdout.write(render(commands))


def render_bash(commands: Iterable[CommandGrammar]) -> str:
    """Write a completion function for bash."""
    commands = list(commands)
    names = " ".join(command.name for command in commands)
    cases = []
    for command in commands:
        words = [*command.flags, *(word for option in command.options for word in _words(option))]
        cases.append(f"        {command.name}) words={_quote(' '.join(words))} ;;")
    values = [
        f"        {command.name}:{flag}) words={_quote(' '.join(option.choices))} ;;"
        for command in commands
        for option in command.options
        for flag in option.flags
        if option.choices
    ]
    files = "|".join(
        f"{command.name}:{flag}"
        for command in commands
        for option in command.options
        for flag in option.flags
        if option.metavar == "FILE"
    )
    return "\n".join(
        [
            "# pagemerge completion bash",
            "_pagemerge() {",
            "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
            "    local command=${COMP_WORDS[1]} words i",
            "    # an '=' is a word of its own to bash",
            "    if [[ $cur == = || $prev == = ]]; then COMPREPLY=(); return; fi",
            "    if ((COMP_CWORD == 1)); then",
            f'        COMPREPLY=($(compgen -W "{names} --help --version" -- "$cur"))',
            "        return",
            "    fi",
            "    for ((i = 2; i < COMP_CWORD; i++)); do",
            '        if [[ ${COMP_WORDS[i]} == -- ]]; then COMPREPLY=($(compgen -c -- "$cur"));'
            " return; fi",
            "    done",
            "    case $command:$prev in",
            *values,
            *(
                [f'        {files}) COMPREPLY=($(compgen -f -- "$cur")); return ;;']
                if files
                else []
            ),
            "    esac",
            "    if [[ -z ${words+set} ]]; then",
            "        case $command in",
            *(f"    {case}" for case in cases),
            "        esac",
            "    fi",
            '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
            "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace",
            "}",
            "complete -F _pagemerge pagemerge",
            "",
        ]
    )


def render_zsh(commands: Iterable[CommandGrammar]) -> str:
    """Write a completion function for zsh."""
    commands = list(commands)
    lines = ["#compdef pagemerge", "", "_pagemerge() {", "    local -a subcommands=("]
    lines += [f"        {_quote(f'{command.name}:{command.help}')}" for command in commands]
    lines += [
        "    )",
        "    if ((CURRENT == 2)); then _describe command subcommands; return; fi",
        "    local name=$words[2]",
        "    shift words; ((CURRENT--))",
        "    case $name in",
    ]
    for command in commands:
        specs = [spec for option in command.options for spec in _zsh_specs(option)]
        lines.append(f"        {command.name}) _arguments -S {' '.join(map(_quote, specs))} ;;")
    lines += ["    esac", "}", "", '_pagemerge "$@"', ""]
    return "\n".join(lines)


def render_fish(commands: Iterable[CommandGrammar]) -> str:
    """Write completions for fish."""
    lines = ["complete -c pagemerge -f"]
    for command in commands:
        lines.append(
            f"complete -c pagemerge -n __fish_use_subcommand -a {command.name} "
            f"-d {_quote(command.help)}"
        )
        condition = f"complete -c pagemerge -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            line = condition
            for flag in option.flags:
                line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
            if option.flags and option.metavar:
                line += " -rF" if option.metavar == "FILE" else " -x"
            if option.choices:
                line += f" -a {_quote(' '.join(option.choices))}"
            elif not option.flags:
                line += " -a '(__fish_complete_subcommand)'" if option.metavar == "CMD" else ""
            if line != condition:
                lines.append(f"{line} -d {_quote(option.help)}" if option.help else line)
    return "\n".join(lines) + "\n"


def _words(option: Option) -> tuple[str, ...]:
    """Give what a positional argument may be."""
    return () if option.flags else option.choices


def _zsh_specs(option: Option) -> Iterable[str]:
    text = option.help.replace("[", "(").replace("]", ")").replace(":", " -")
    if option.choices:
        joined = " ".join(option.choices)
        unfinished = option.choices[0].endswith("=")  # a value follows: no blank after it
        values = f":{option.metavar}:" + (
            f'compadd -S "" {joined}' if unfinished else f"({joined})"
        )
    elif option.metavar == "FILE":
        values = ":file:_files"
    else:
        values = f":{option.metavar}:" if option.metavar else ""
    if option.flags:
        return [f"{flag}[{text}]{values}" for flag in option.flags]
    if option.metavar == "CMD":
        return ["*::command:_normal"]
    return [f"*{values}"]


def _quote(text: str) -> str:
    """Quote for all three shells."""
    return "'" + text.replace("'", "'\\''") + "'"
