"""The command line: parse, call one function, print, leave with the right status.

Knows no science. A mistake of the user's is one sentence on standard error and the exit status of its error
(`--verbose` adds the traceback); Ctrl-C is 130, and every finished cell is kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from icrl_lab import __version__
from icrl_lab.errors import IcrlError, ProbeRefused, StudyError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    args = _parser().parse_args(argv)
    try:
        status = args.command(args)
        sys.stdout.flush()
        return int(status or 0)
    except KeyboardInterrupt:
        out = getattr(args, "out", None)
        kept = f"; every finished cell is kept in {out}, go on with --resume" if out and os.path.isdir(out) else ""
        print(f"\nicrl-lab: stopped{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has left, and wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        elif isinstance(error, IcrlError):
            print(f"icrl-lab: {error}", file=sys.stderr)
        elif isinstance(error, OSError) and error.filename is not None:  # a disk, a permission, a name: the machine's
            print(f"icrl-lab: {error.filename}: {error.strerror or error}", file=sys.stderr)
        else:  # ours to mend; a user is spared the traceback, and told how to get it
            what = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"icrl-lab: an error of the lab's own, {what[:300]}; --verbose shows where", file=sys.stderr)
        return error.exit_status if isinstance(error, IcrlError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="icrl-lab",
        description="Can a text LLM use a vector that no text produced, and how?",
        epilog="Example: icrl-lab demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"icrl-lab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function, help: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"Example: {example}"
        )
        sub.set_defaults(command=function)
        sub.add_argument("--verbose", action="store_true", help="show the traceback of an error")
        return sub

    demo = add("demo", _demo, "run the main job on the embedded defaults", "icrl-lab demo --out my-first-run")
    demo.add_argument("--out", metavar="DIR", help="run folder (default: runs/demo-DATE)")
    demo.add_argument("--resume", action="store_true", help="go on with the run in --out")
    demo.add_argument("--quick", action="store_true", help="fewer seeds, queries and draws: about a minute")

    run = add("run", _run, "run the study of a study file", "icrl-lab run esol.toml --out runs/esol")
    run.add_argument("study", metavar="STUDY.toml")
    run.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME-DATE)")
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; no finished cell is computed again"
    )

    report = add(
        "report", _report, "rebuild report.html of a run folder, without any model", "icrl-lab report runs/esol"
    )
    report.add_argument("dir", metavar="DIR")

    bench = add(
        "bench", _bench, "measure the engine against the honest alternatives", "icrl-lab bench --json bench.json"
    )
    bench.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    bench.add_argument(
        "--geometry", metavar="NAME", default="smollm2-135m", help="smollm2-135m or llama-3.1-8b, random weights"
    )
    bench.add_argument("--quick", action="store_true", help="short prefixes and few repeats: to see that it works")
    bench.add_argument(
        "--peer",
        metavar="NAME=PYTHON",
        action="append",
        default=[],
        help="also measure llama-cpp, vllm, transformer-lens or nnsight, installed for PYTHON",
    )

    lab = add("lab", _lab, "open JupyterLab on a working copy of the tutorials", "icrl-lab lab --dir my-notebooks")
    lab.add_argument(
        "--dir", metavar="DIR", default="icrl-lab-notebooks", help="the working copy (default: %(default)s)"
    )
    dash = add("dash", _dash, "open the dashboards of a run as an app on this machine", "icrl-lab dash runs/esol")
    dash.add_argument(
        "dir", metavar="DIR", nargs="?", default="runs", help="a run folder, or a folder of runs (default: %(default)s)"
    )
    dash.add_argument("--live", action="store_true", help="load the run's model too, so that shots can be moved")
    dash.add_argument("--theme", choices=("light", "dark"), default="light", help="default: %(default)s")
    for server, port in ((lab, 8888), (dash, 8866)):
        server.add_argument("--port", type=_port, default=port, help="default: %(default)s")
        server.add_argument("--no-browser", action="store_true", help="only print the address")

    doctor = add("doctor", _doctor, "check what can be run here", "icrl-lab doctor --json")
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    doctor.add_argument(
        "--statistics", action="store_true", help="repeat the simulations behind intervals and verdicts"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a whole number up to 65535, not {text!r}")
    return int(text)


def _demo(args: argparse.Namespace) -> int:
    from icrl_lab.studies.spec import StudySpec

    _resumable(args)
    text = files("icrl_lab").joinpath("demo.toml").read_text(encoding="utf-8")
    import tomllib

    document = tomllib.loads(text)
    if args.quick:
        document["study"] |= {"seeds": 3, "queries": 32, "arms": ["text", "moments-vocab", "moments-vocab x4", "ridge"]}
    args.out = args.out or _default_out("demo")
    return _study(StudySpec.from_dict(document), args.out, args.resume)


def _run(args: argparse.Namespace) -> int:
    from icrl_lab.studies.spec import StudySpec

    _resumable(args)
    spec = StudySpec.read(args.study)
    args.out = args.out or _default_out(Path(args.study).stem)
    return _study(spec, args.out, args.resume)


def _resumable(args: argparse.Namespace) -> None:
    if args.resume and not args.out:
        raise StudyError("--resume needs --out: the folder of the run to go on with")


def _default_out(name: str) -> str:
    return os.path.join("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def _study(spec, out: str, resume: bool) -> int:
    from icrl_lab import report, tables
    from icrl_lab.studies.folder import RunFolder

    start = time.time()
    RunFolder.refuse(out, resume)  # before a model is loaded for nothing
    from icrl_lab.studies import load, open_run

    study = load(spec, progress=None)
    gc.freeze()  # some 400,000 objects of libraries stay to the end; the collector need not look at them in each of its rounds
    _say(f"{study.task!r}; vectors {study.vectors.space}; {study.llm!r}; ready after {time.time() - start:.1f} s")
    if study.task.dropped:
        first, count = study.task.dropped[0], len(study.task.dropped)
        _say(
            f"{count} row{'s' * (count > 1)} left out or merged, listed in the manifest; "
            f"the first: {f'{first.place}, ' if first.place else ''}{first.reason}"
        )
    there = len(study.task.queries)
    if there < study.plan.queries:
        _say(
            f"queries = {study.plan.queries}, and the task has {there} items to ask about: all of them are asked about"
        )
    refused: ProbeRefused | None = None
    try:
        result = study.run(out, resume=resume)
    except ProbeRefused as error:  # the study is finished, and so is what else was asked
        refused, result = error, open_run(out)
    page = report.write(out)
    print(tables.text(result.summary(), result.baselines(), units=study.task.units))
    _say(f"{len(study.cells())} cells in {time.time() - start:.0f} s; run folder {out}; report {page}")
    if refused:
        raise refused
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _report(args: argparse.Namespace) -> int:
    from icrl_lab import report

    print(report.write(args.dir))
    return 0


def _lab(args: argparse.Namespace) -> int:
    from icrl_lab.widgets import serve

    return serve.open_lab(args.dir, browser=not args.no_browser, port=args.port)


def _dash(args: argparse.Namespace) -> int:
    from icrl_lab.widgets import serve

    return serve.open_dash(args.dir, live=args.live, browser=not args.no_browser, port=args.port, theme=args.theme)


def _bench(args: argparse.Namespace) -> int:
    from icrl_lab import bench
    from icrl_lab.files import write_text
    from icrl_lab.studies.place import disk_trouble

    if args.json and os.path.isdir(args.json):  # before minutes are spent on it
        raise StudyError(f"--json {args.json} is a folder; give the name of a file")
    peers = dict(peer.partition("=")[::2] for peer in args.peer)
    result = bench.run(args.device, args.geometry, quick=args.quick, peers=peers)
    print(bench.table(result))
    if args.json:
        with disk_trouble(Path(args.json)):
            write_text(args.json, json.dumps(result, indent=1) + "\n")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from icrl_lab import doctor

    found = []
    for check in doctor.statistics() if args.statistics else doctor.checks():
        found.append(check)
        if not args.json:
            print(f"{'ok ' if check.ok else 'NO ' if check.needed else '-- '} {check.name}: {check.says}", flush=True)
    if args.json:
        print(json.dumps([check._asdict() for check in found], indent=1))
    return 0 if all(check.ok for check in found if check.needed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
