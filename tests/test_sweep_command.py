"""`python -m em sweep`: here, as a SLURM array, as a W&B sweep, and how far it is."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import train
from em import experiment
from em.callbacks._loggers import wandb_logger
from em.cli import main
from em.config import Config, Suite, load
from em.runs import RunDirectory
from tests.comparison.trained import LORA_2, SMALL, raw_config, tables
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
WEIGHTS = ["weight-0.5", "weight-5"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return written(tiny_config(tmp_path, trainer={"max_steps": 2}, compare=None), tmp_path)


def written(raw: dict[str, Any], folder: Path) -> Path:
    """A sweep over the KL weight, in a file whose name a shell would take apart."""
    path = folder / "my $sweep's.yaml"
    path.write_text(yaml.safe_dump({**raw, "name": "grid", "sweep": {"kl.weight": [0.5, 5]}}))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose training began."""
    names: list[str] = []
    fit = experiment.fit

    def counted(made: Any, *arguments: Any) -> None:
        names.append(made.config.name)
        fit(made, *arguments)

    monkeypatch.setattr(experiment, "fit", counted)
    return names


def sweep(*arguments: str | Path) -> int:
    return main(["sweep", *map(str, arguments)])


def members(conf: Path, *overrides: str) -> dict[str, Config]:
    loaded = load(conf, overrides)
    assert isinstance(loaded, Suite)
    return loaded.members


def states(conf: Path, capsys: Captured, *overrides: str) -> dict[str, str]:
    """Member -> the rest of its row; and what the last line counts."""
    capsys.readouterr()
    assert sweep(conf, *overrides, "--status") == 0
    lines = [line.strip().partition(" ") for line in capsys.readouterr().out.splitlines()]
    return {name: " ".join(rest.split()) for name, _, rest in lines if name.startswith(("weight", *"0123"))}


def failing(fit: Callable[..., None], name: str, error: BaseException) -> Callable[..., None]:
    def fails(made: Any, *arguments: Any) -> None:
        if made.config.name == name:
            raise error
        fit(made, *arguments)

    return fails


def test_here_and_one_after_another(tmp_path: Path, trained: list[str], capsys: Captured) -> None:
    compare = {**SMALL, "sections": ["efficiency"]}
    conf = written(raw_config(tmp_path, "x", intervention=LORA_2, compare=compare), tmp_path)
    steps = "trainer.max_steps=3"
    assert sweep(conf, steps) == 0
    assert trained == ["grid/weight-0.5", "grid/weight-5"]
    folder = tmp_path / "runs" / "grid"
    assert [row["name"] for row in tables(folder)["solutions"]["solutions"]] == WEIGHTS
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().err
    # A list replaced: what is there stays, what is new is trained, and the page is of what is asked for.
    assert sweep(conf, steps, "sweep.kl.weight=[5, 1, 0.5]") == 0
    assert trained == ["grid/weight-0.5", "grid/weight-5", "grid/weight-1"]
    assert [row["name"] for row in tables(folder)["solutions"]["solutions"]] == [
        *("weight-5", "weight-1", "weight-0.5")
    ]
    # One of them as a task of an array job or of an agent would train it.
    assert train.main([str(conf), steps, "--member=weight-5"]) == 0
    assert len(trained) == 3


def test_a_failed_member_stops_no_other_and_gives_status_1(
    conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    error = RuntimeError("no kernel image is available")
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", failing(experiment.fit, "grid/weight-0.5", error))
        assert sweep(conf) == 1
    assert "1 of 2 failed: weight-0.5; the same command tries them again" in capsys.readouterr().err
    told = states(conf, capsys)
    assert told["weight-0.5"] == "failed RuntimeError: no kernel image is available"
    assert told["weight-5"].startswith("finished in 0:0") and told["1"] == "of 2 finished"
    assert sweep(conf) == 0
    assert states(conf, capsys)["2"] == "of 2 finished"


def test_the_status_of_every_kind_of_member(
    conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    runs = conf.parent / "runs" / "grid"
    assert states(conf, capsys) == {
        "weight-0.5": "not started",
        "weight-5": "not started",
        "0": "of 2 finished",
    }
    assert not runs.exists()  # to look changes nothing
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", failing(experiment.fit, "grid/weight-0.5", KeyboardInterrupt()))
        assert sweep(conf) == 130
    assert states(conf, capsys)["weight-0.5"] == "interrupted after step 0 of 2"
    run = RunDirectory(runs / "weight-0.5")
    run.metrics.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    with run.locked():
        assert states(conf, capsys)["weight-0.5"] == "running after step 1 of 2"
        with (run.path / ".lock").open("rb") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert states(conf, capsys)["weight-0.5"] == "interrupted after step 1 of 2"
    assert sweep(conf) == 0
    other = states(conf, capsys, "optimizer.lr=0.5")["weight-0.5"]
    assert other.startswith(f"in the way {run.path} holds a run with another configuration: optimizer.lr")
    (run.path / "manifest.json").write_text("{")
    assert "manifest.json: cannot be read" in states(conf, capsys)["weight-0.5"]


def test_the_page_of_what_is_finished(tmp_path: Path, trained: list[str], capsys: Captured) -> None:
    compare = {**SMALL, "sections": ["efficiency"]}
    conf = written(raw_config(tmp_path, "x", intervention=LORA_2, compare=compare), tmp_path)
    assert sweep(conf, "--page") == 1
    message = f"RunError: no member of {conf} is finished, so there is nothing to draw; train them first"
    assert message in capsys.readouterr().err
    assert train.main([str(conf), "--member=weight-5"]) == 0
    assert sweep(conf, "--page") == 1
    assert "left out: weight-0.5: not started" in capsys.readouterr().err
    folder = tmp_path / "runs" / "grid"
    assert [row["name"] for row in tables(folder)["solutions"]["solutions"]] == ["weight-5"]
    assert train.main([str(conf), "--member=weight-0.5"]) == 0
    assert sweep(conf, "--page") == 0
    assert [row["name"] for row in tables(folder)["solutions"]["solutions"]] == WEIGHTS
    assert list(json.loads((folder / "comparison.json").read_text())["members"]) == WEIGHTS
    assert trained == ["grid/weight-5", "grid/weight-0.5"]


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that writes down its arguments and environment, and an srun that runs what it is given."""
    folder = tmp_path / "the stubs"
    folder.mkdir()
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "keys = ('EM_DATA', 'SRUN_CPUS_PER_TASK')\n"
        "told = {'argv': sys.argv[1:], 'cwd': os.getcwd(), **{key: os.environ.get(key) for key in keys}}\n"
        "open(os.environ['TOLD'], 'w').write(json.dumps(told))\n"
        "sys.exit(7)\n"
    )
    (folder / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.json"))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submitted(path: Path, task: str, **env: str) -> tuple[int, Any]:
    """What a task of an array job runs: the exit status, and what the stub of Python wrote."""
    told = Path(os.environ["TOLD"])
    told.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SRUN"))}
    environment |= {"SLURM_ARRAY_TASK_ID": task, **env}
    done = subprocess.run(["bash", str(path)], env=environment, cwd="/", check=False, capture_output=True)
    return done.returncode, json.loads(told.read_text()) if told.is_file() else done.stderr.decode()


def test_an_array_job_has_a_task_for_each_member(
    conf: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("EM_DATA", "/data of $mine")
    awkward = 'description=it\'s $HOME `x`; "y"'
    path = conf.parent / "runs" / "grid" / "sweep.sbatch"
    options = ["--sbatch=--time=04:00:00", "--sbatch=--gres=gpu:1", "--sbatch=--exclusive"]
    assert sweep(conf, "seed=3", awkward, "--slurm", *options, "--sbatch=--comment=a b", "--at-once=1") == 0
    status, told = submitted(path, "1")
    assert status == 7  # srun and Python end the job with their own status
    script = told["argv"].pop(0)
    assert (Path.cwd() / script).samefile(ROOT / "train.py")
    assert told == {
        "argv": [str(conf), "seed=3", awkward, "--member=weight-5"],
        "cwd": str(Path.cwd()),
        "EM_DATA": "/data of $mine",
        "SRUN_CPUS_PER_TASK": None,
    }
    status, told = submitted(path, "0", SLURM_CPUS_PER_TASK="6")
    assert told["argv"][-1] == "--member=weight-0.5" and told["SRUN_CPUS_PER_TASK"] == "6"
    status, error = submitted(path, "2")
    assert status != 0 and "unbound variable" in error
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "#SBATCH --job-name=grid",
        "#SBATCH --array=0-1%1",
        f"#SBATCH --output={path.parent}/slurm-%A_%a.txt",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --time=04:00:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --exclusive",
        "#SBATCH --comment='a b'",
    ]
    assert not (path.parent / "weight-5").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{path}: 2 members, one to a task. Nothing is submitted. To submit it:"
    assert shlex.split(printed[1]) == ["sbatch", str(path)]
    again = [str(stubs / "python"), "-m", "em", "sweep", str(conf), "seed=3", awkward]
    assert [shlex.split(line) for line in printed[3:]] == [[*again, "--status"], [*again, "--page"]]


def test_an_array_job_of_larger_members(conf: Path) -> None:
    path = conf.parent / "runs" / "a %b" / "sweep.sbatch"
    size = ["trainer.num_nodes=2", "trainer.devices=4", "data.batch_size=16"]
    assert sweep(conf, "name=a %b", *size, "--slurm") == 0
    lines = path.read_text().splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --array=0-1%2"} <= set(lines)
    assert "#SBATCH --job-name=a-b" in lines
    output = shlex.quote(f"{path.parent}/slurm-%A_%a.txt".replace("a %b", "a %%b"))
    assert f"#SBATCH --output={output}" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slurm", "--sbatch=time=1"], "--sbatch='time=1': expected one line such as"),
        (["--slurm", "--sbatch=--time=1\nrm -rf x"], "--sbatch='--time=1\\nrm -rf x': expected one line"),
        (["--slurm", "--sbatch=--time 1"], "--sbatch='--time 1': expected one line such as"),
        (["--slurm", "--sbatch=--"], "--sbatch='': expected one line such as"),
        (["--slurm", "--sbatch=--array=0-9"], "--sbatch=--array=0-9: the array has a task for each member"),
        (["--slurm", "--at-once=0"], "--at-once: expected at least 1, got 0"),
        (["--sbatch=--time=1"], "--sbatch and --at-once are of an array job; add --slurm"),
        (["--wandb", "--at-once=2"], "--sbatch and --at-once are of an array job; add --slurm"),
        (["--slurm", "overwrite=true"], "overwrite: true would train weight-0.5 anew each time its task"),
        (["--wandb", "overwrite=true"], "overwrite: true would train weight-0.5 anew each time its task"),
        (["--slurm", "members.weight-5.trainer.devices=2"], "(1 × 1, 1 × 2), but all tasks of an array job"),
        (["sweep=null"], "has neither `sweep` nor `members`; add a list to sweep over, for example"),
        (["sweep.kl.weigth=[1]"], "kl.weigth: unknown key; did you mean kl.weight?"),
    ],
)
def test_what_cannot_be_written(
    conf: Path, arguments: list[str], message: str, trained: list[str], capsys: Captured
) -> None:
    assert sweep(conf, *arguments) == 1
    assert message in capsys.readouterr().err
    assert trained == [] and not (conf.parent / "runs").exists()


def test_a_path_that_would_break_out_of_a_comment(conf: Path, capsys: Captured) -> None:
    broken = conf.rename(conf.with_name("x\nrm -rf y.yaml"))
    assert sweep(broken, "--slurm") == 1
    assert "x\\nrm -rf y.yaml': cannot stand in a script; rename it" in capsys.readouterr().err


def test_only_one_way_at_a_time(conf: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep(conf, "--slurm", "--wandb")
    assert ended.value.code == 2 and "not allowed with" in capsys.readouterr().err


def agent_command(definition: dict[str, Any], member: str) -> list[str]:
    """The command that an agent of W&B starts, put together by its own functions (wandb/wandb_agent.py)."""
    given = create_sweep_command_args({"args": {"member": {"value": member}}})
    command: list[str] = []
    for part in create_sweep_command(list(definition["command"])):
        whole = part.startswith("${") and part.endswith("}")
        command += given[part[2:-1]] if whole else [part]
    return command


def test_a_sweep_of_wandb_has_the_members_as_its_grid(
    conf: Path, capsys: Captured, trained: list[str]
) -> None:
    path = conf.parent / "runs" / "grid" / "sweep.wandb.yaml"
    settings = ["trainer.max_steps=1", "wandb.project=mine", "wandb.entity=us"]
    assert sweep(conf, *settings, "--wandb") == 0
    definition = yaml.safe_load(path.read_text())
    grid = definition["parameters"].pop("member")
    assert grid == {"values": WEIGHTS} and definition.pop("parameters") == {}
    python, script, *arguments = agent_command(definition, grid["values"][1])
    assert (python, (Path.cwd() / script).samefile(ROOT / "train.py")) == (sys.executable, True)
    assert arguments == [str(conf), *settings, "--member=weight-5"]
    del definition["command"]
    assert definition == {
        "name": "grid",
        "project": "mine",
        "entity": "us",
        "program": script,
        "method": "grid",
    }
    printed = capsys.readouterr().out
    assert (
        f"wandb sweep {shlex.quote(str(path))}\n" in printed
        and "wandb agent ENTITY/PROJECT/SWEEP\n" in printed
    )
    assert "Nothing is uploaded" in printed
    # train.py takes what the agent gives it.
    assert train.main(arguments) == 0
    assert trained == ["grid/weight-5"]
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == ["weight-5"]


def test_offline_metrics_would_not_reach_a_sweep(
    conf: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(conf, "wandb.mode=offline", "--wandb") == 0
    said = capsys.readouterr().out
    assert "wandb.mode is offline: an agent would train the members, but W&B would show none" in said
    assert "wandb.mode=online" in said
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert sweep(conf, "wandb.mode=online", "--wandb") == 0
    assert "W&B would show none" not in capsys.readouterr().out


def test_a_run_under_an_agent_joins_its_sweep(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    config = members(conf, "wandb.mode=offline", "wandb.project=mine")["weight-5"]
    run = RunDirectory(conf.parent / "runs" / "agent")
    run.path.mkdir(parents=True)
    run.update_manifest(wandb_id="ours1234")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "agents12")
    monkeypatch.setenv("WANDB_DIR", str(run.path))
    wandb.teardown()  # the settings of a process are read once
    try:
        logger = wandb_logger(config, run)
        assert logger is not None
        logged = logger.experiment
        assert (logged.id, logged.sweep_id, logged.name) == ("agents12", "sweep123", "grid/weight-5")
        wandb.finish()
    finally:
        monkeypatch.undo()
        wandb.teardown()
