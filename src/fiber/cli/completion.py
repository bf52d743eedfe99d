"""`fiber completion`: completion of the command by a shell.

By ourselves, not by a library: what is worth completing besides verbs and options are the names of configurations and
files, and a shell function of ten lines does it for bash and zsh alike.
"""

import argparse

DESCRIPTION = """Completion of verbs, options, names of configurations and files. For good:

    echo 'eval "$(fiber completion bash)"' >> ~/.bashrc
    echo 'eval "$(fiber completion zsh)"' >> ~/.zshrc
"""

BASH = """_fiber() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words= configs="{configs}"
  if ((COMP_CWORD == 1)); then
    words="{verbs} --help --version"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _fiber fiber
"""
ZSH = "autoload -Uz bashcompinit compinit && compinit && bashcompinit\n"
WITH_CONFIGURATIONS = ("train", "eval", "plan", "config")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that is to know the command")


def run(arguments: argparse.Namespace) -> int:
    """Print the script; -> exit status."""
    print((ZSH if arguments.shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """A bash function that knows every verb's options."""
    from fiber.cli import main
    from fiber.cli.config import names

    cases = []
    for verb in main.VERBS:
        parser = argparse.ArgumentParser()
        main.module(verb.name).arguments(parser)
        words = [word for action in parser._actions for word in action.option_strings if word.startswith("--")]
        words += [
            choice for action in parser._actions if not action.option_strings for choice in action.choices or ()
        ]
        words += ["$configs"] if verb.name in WITH_CONFIGURATIONS else []
        cases.append(f'      {verb.name}) words="{" ".join(words)}" ;;')
    verbs = " ".join(verb.name for verb in main.VERBS)
    return BASH.format(verbs=verbs, configs=" ".join(names()), cases="\n".join(cases))
