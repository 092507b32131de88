"""kappaface: lists the programs of launch/ and tools/, and runs them, from any folder.

kappaface                                      # what there is
kappaface train configs/glint360k.yaml         # one process for each GPU
kappaface make-record photos data/mine         # python tools/make_record.py photos data/mine
kappaface torchrun --nproc_per_node=2 -m kappaface_dist evaluate MODEL --set NAME=PATH
eval "$(kappaface completion bash)"            # or zsh: Tab completes names of programs
kappaface path launch/slurm/train.sbatch       # where the package has this file
"""

import ast
import difflib
import os
import signal
import sys
import types
from pathlib import Path

import kappaface_dist
from kappaface_dist import commands
from kappaface_dist.config.shipped import shipped_folder

FOLDERS = ("configs", "launch", "tools")
OWN = {
    "completion": "print what makes a shell complete the names: bash or zsh",
    "path": "print where a file of configs/, launch/ or tools/ lies",
    "torchrun": "as torchrun, which ends with our sentence and our exit code",
}
# Names at the first word, files after it; zsh reads it by its bashcompinit.
COMPLETION = """\
_kappaface() {{
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{names}" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  fi
}}
complete -o default -F _kappaface kappaface
"""


def programs() -> dict[str, Path]:
    """The files of launch/ and tools/ by the name that the command line has for them."""
    found = [*shipped_folder("launch").glob("*.py"), *sorted(shipped_folder("tools").glob("*.py"))]
    return {path.stem.replace("_", "-"): path for path in found}


def summary(program: Path) -> str:
    """The first line of a program's docstring; it is read, not imported, which takes seconds."""
    text = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def overview() -> str:
    """What `kappaface` prints."""
    lines = {name: summary(path) for name, path in programs().items()}
    lines["train"] = "train a network from a YAML file, with one process for each GPU"
    width = max(map(len, lines | OWN)) + 2
    listed = "\n".join(f"  {name:{width}}{text}" for name, text in (lines | OWN).items())
    return (
        f"kappaface_dist {kappaface_dist.__version__}\n\n"
        f"kappaface COMMAND [ARGUMENTS]; COMMAND --help says more\n\n{listed}\n"
    )


def completion(shell: str) -> str:
    """The script that makes bash or zsh complete the names of the programs."""
    if shell not in ("bash", "zsh"):
        raise ValueError(f"completion is for bash or zsh, not for {shell!r}")
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + COMPLETION.format(names=" ".join(sorted([*programs(), *OWN])))


def shipped_path(name: str) -> Path:
    """Where a file or folder lies that README names as configs/..., launch/... or tools/..."""
    folder, *rest = Path(name).parts or ("",)
    if folder not in FOLDERS:
        raise ValueError(f"{name!r} is not in {', '.join(FOLDERS)}: give a path that starts so")
    path = shipped_folder(folder).joinpath(*rest)
    if not path.exists():
        raise ValueError(f"{path} does not exist: kappaface path {folder} says where to look")
    return path


def torchrun_command(arguments: list[str], num_gpus: int) -> list[str]:
    """What starts a training on all GPUs of this machine; empty where one process is enough."""
    asks_only = {"-h", "--help", "--print-config"} & set(arguments)
    if num_gpus < 2 or asks_only or "RANK" in os.environ:
        return []
    return [
        *(sys.executable, "-m", kappaface_dist.__name__, "torchrun", "--standalone"),
        *(f"--nproc_per_node={num_gpus}", str(programs()["train"]), *arguments),
    ]


def run_program(name: str, arguments: list[str]) -> None:
    """Run a program as `python tools/NAME.py` would."""
    known = programs()
    found = name.replace("_", "-").removesuffix(".py")
    if found not in known:
        near = difflib.get_close_matches(found, [*known, *OWN], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "kappaface lists them"
        raise ValueError(f"there is no command {name!r}: {hint}")
    if found == "train":
        import torch  # which the training needs anyway, and nothing before

        if launcher := torchrun_command(arguments, torch.cuda.device_count()):
            print(" ".join(["kappaface", *launcher[3:]]), file=sys.stderr, flush=True)
            os.execv(launcher[0], launcher)
    run_as_main(known[found], [f"kappaface {found}", *arguments])


def run_torchrun(arguments: list[str]) -> None:
    """torchrun, without its traceback: the last line is the one of the process that failed first,
    and the exit code is that one's, too.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stopped
        print(f"stopped by {stopped.sigval.name}", file=sys.stderr)
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        told = failure.error_file_data.get("message")
        # Without a word of its own: killed, or a program that is not ours.
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"code {failure.exitcode}"
        sentence = f"error: rank {rank} ended with {how}, its lines above may say why"
        if isinstance(told, dict):
            sentence = str(told["message"])
        print(sentence, file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


def run_as_main(program: Path, argv: list[str]) -> None:
    """As runpy.run_path, which would call the program by its file in its help."""
    module = types.ModuleType("__main__")
    module.__file__ = str(program)  # where processes that it spawns find its functions
    before = sys.modules["__main__"], sys.argv
    sys.modules["__main__"], sys.argv = module, argv
    try:
        exec(compile(program.read_bytes(), program, "exec"), module.__dict__)
    finally:
        sys.modules["__main__"], sys.argv = before


def choose() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview(), end="")
    elif name in ("-V", "--version"):
        print(f"kappaface_dist {kappaface_dist.__version__}")
    elif name == "torchrun":
        run_torchrun(arguments)
    elif name in OWN and len(arguments) != 1:
        raise ValueError(f"kappaface {name} takes one argument: {OWN[name]}")
    elif name == "completion":
        print(completion(arguments[0]), end="")
    elif name == "path":
        print(shipped_path(arguments[0]))
    else:
        run_program(name, arguments)


def main() -> None:
    """The console command; a mistake ends it with one line and code 1."""
    commands.run(choose)
