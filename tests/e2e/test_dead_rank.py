"""One process that dies, hangs or fails ends the others with one message; the same command goes on."""

import contextlib
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from em.runs import RunDirectory
from tests.e2e.command import train, write_config
from tests.tiny import tiny_config

GOES_ON = "run the same command to go on from the last checkpoint"
DIED, HANGS = "has died (killed, or out of memory)", "has given no sign of life for 4 seconds"
COLD = "failed: TrainingError: the soup is cold; heat it"
BUG = "failed: ZeroDivisionError: not foreseen"
# What becomes of one run, attempt after attempt, each a step later: who, how, the run's status, the words.
FAULTS = {
    "ddp": [
        (1, "bug", "failed", BUG),
        (0, "SIGKILL", "interrupted", DIED),
        (1, "SIGSTOP", "interrupted", HANGS),
        (1, "TrainingError", "failed", COLD),
    ],
    "fsdp2": [(1, "SIGKILL", "interrupted", DIED)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dead")


def config(folder: Path, strategy: str) -> Path:
    marks = folder / "marks"
    marks.mkdir(exist_ok=True)
    raw = tiny_config(
        folder,
        trainer={"max_steps": 6, "checkpoint_every_n_steps": 1, "devices": 2, "strategy": strategy},
        callbacks={
            "culprit": {"_target_": "tests.e2e.culprit.Culprit", "every_n_steps": 1, "folder": str(marks)}
        },
    )
    del raw["data"]["domains"]
    return write_config(folder, raw, f"{strategy}.yaml")


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def alive(marks: Path, seconds: float = 10) -> list[int]:
    """Ids of processes that still exist after some seconds and are no zombies."""
    began = time.monotonic()
    while found := _running(marks):
        if time.monotonic() - began > seconds:
            break
        time.sleep(0.1)
    return found


def _running(marks: Path) -> list[int]:
    found = []
    for pid in [int(path.stem.split("-")[1]) for path in marks.glob("*.pid")]:
        with contextlib.suppress(OSError):  # it has gone
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


@pytest.mark.parametrize("strategy", FAULTS)
def test_the_others_end_and_the_same_command_goes_on(folder: Path, strategy: str) -> None:
    conf, marks = config(folder, strategy), folder / "marks"
    run = RunDirectory(folder / "runs" / f"{strategy}-faulty")
    for step, (rank, how, status, words) in enumerate(FAULTS[strategy], 2):
        for path in marks.iterdir():
            path.unlink()
        ended = train(
            conf,
            f"name={run.path.name}",
            EM_TEST_RANK=str(rank),
            EM_TEST_STEP=str(step),
            EM_TEST_HOW=how,
            EM_SILENT_SECONDS="4",
        )
        assert time.time() - (marks / "culprit").stat().st_mtime < 60
        assert ended.returncode != 0 and len(list(marks.glob("*.pid"))) == 2 and alive(marks) == []
        culprit = f"process {rank} of 2 ({os.uname().nodename}, pid {(marks / 'culprit').read_text()})"
        told = f"fter step {step} {culprit} {words}. All others"
        assert ended.stderr.count(told) == 1 and ended.stderr.count(GOES_ON) == 1, ended.stderr
        assert ("Traceback" in ended.stderr) == (how == "bug"), ended.stderr
        assert run.manifest()["status"] == status and told in run.manifest()["error"]
        assert torch.load(run.checkpoint, weights_only=True)["global_step"] == step - 1
    again = train(conf, f"name={run.path.name}")
    assert again.returncode == 0 and f"going on after step {step - 1}" in again.stderr, again.stderr
    assert run.manifest()["status"] == "finished" and run.manifest()["error"] is None
    whole = train(conf, f"name={strategy}")
    assert whole.returncode == 0, whole.stderr
    expected = weights(RunDirectory(folder / "runs" / strategy))
    actual = weights(run)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert torch.equal(value, actual[key]), key
