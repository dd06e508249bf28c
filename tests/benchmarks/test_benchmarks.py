import importlib
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__, running
from benchmarks.architectures import RANDOM_SHAPES, byte_tokenizer
from benchmarks.machine import rate
from benchmarks.memory import now_mb, peak_mb, restart_peak
from benchmarks.ours.arithmetic import Shape, step_flops
from benchmarks.ours.start import slowest_imports
from benchmarks.results import (
    Result,
    Summary,
    disagreement,
    failed,
    largest_difference,
    read_results,
    summary,
    value_of,
    verdict,
)
from benchmarks.rows import ROWS, Target, chosen
from benchmarks.running import run_row
from benchmarks.settings import RANDOM, Settings
from benchmarks.sizes import sizes_of
from benchmarks.table import lines, markdown_table, performance_page

SPEED, MEMORY = Target("speed", 2.0), Target("memory", 0.6)
TINY = Settings(row="", scale="small", arch="tiny", data="advice", threads=1)
MACHINE = {
    "processor": "P",
    "instructions": "AVX2",
    "cores": 2,
    "threads": 1,
    "memory_gb": 8.0,
    "python": "3.11",
    "torch": "2.11",
    "rates": {"fp32": 100.0, "bf16": 10.0},
}


def record(row: str, sides: list[dict[str, dict[str, Any]]], dtype: str = "float32") -> Result:
    settings = {**vars(TINY), "row": row, "dtype": dtype, "scale": "full", "arch": "smollm2"}
    header = {"row": row, "settings": settings, "machine": MACHINE, "command": ["python"], "started": 1.0}
    return Result(header, sides, [], MACHINE)


def side(
    seconds: float, peak: float = 100.0, losses: list[float] | None = None, **more: Any
) -> dict[str, Any]:
    return {"seconds": seconds, "peak_mb": peak, "losses": {"sft": losses or [1.0, 2.0]}, **more}


def store(folder: Path, result: Result, name: str, started: float) -> None:
    header = {"kind": "header", **result.header, "started": started}
    rows = [header]
    for repeat, alternation in enumerate(result.alternations):
        rows += [
            {"kind": "side", "side": which, "repeat": repeat, "result": found}
            for which, found in alternation.items()
        ]
    rows.append({"kind": "after", "machine": MACHINE})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides run here: a process of its own takes seconds to import torch."""

    def run(target: str, settings: Settings, work: Path, log: Path) -> dict[str, Any]:
        module, _, name = target.partition(":")
        found = getattr(importlib.import_module(module), name)(Settings.read(work), work)
        return json.loads(json.dumps({"peak_mb": peak_mb(), **(found or {})}))

    monkeypatch.setattr(running, "run_process", run)


def run_tiny(name: str, out: Path, **changes: Any) -> Result:
    (row,) = [row for row in ROWS if row.name == name]
    settings = Settings(**{**vars(TINY), **changes})
    return run_row(row, settings, 1, out, ["python"], lambda amount, what: None)


def test_ratios_of_each_alternation_give_median_and_range() -> None:
    sides = [{"ours": side(2.0, 30), "peer": side(peer, 60)} for peer in (3.0, 5.0, 10.0)]
    result = record("sft", sides)
    assert summary(result, SPEED) == Summary(2.5, 1.5, 5.0)
    assert summary(result, MEMORY) == Summary(0.5, 0.5, 0.5)
    assert [verdict(result, target) for target in (SPEED, MEMORY)] == ["reached", "reached"]
    assert verdict(result, Target("speed", 2.6)) == "not reached"
    assert verdict(result, Target("memory", 0.49)) == "not reached"
    assert verdict(result, Target("speed", None)) == ""


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    sides = [{"ours": side(1.0), "peer": side(peer)} for peer in (1.0, 2.0, 4.0, 8.0)]
    assert summary(record("sft", sides), SPEED) == Summary(3.0, 1.0, 8.0)


def test_bounds_are_met_when_equal_and_each_measure_has_its_own_side() -> None:
    assert value_of(Target("seconds", 12.0), {"ours": side(11.0)}) == 11.0
    assert value_of(Target("share", 0.6), {"ours": side(1.0, share=0.7)}) == 0.7
    assert value_of(SPEED, {"ours": side(1.0)}) is None
    assert [Target("share", 0.6).reached(value) for value in (0.59, 0.6)] == [False, True]
    assert [Target("seconds", 12.0).reached(value) for value in (12.0, 12.1)] == [True, False]


def test_losses_that_differ_by_more_than_1e4_fail_the_row() -> None:
    alike = [{"ours": side(1, losses=[1.0, 20.0]), "peer": side(9, losses=[1.00009, 20.0015])}]
    assert disagreement(record("sft", alike)) is None
    assert largest_difference(record("sft", alike)) == pytest.approx(0.0015)
    apart = [{"ours": side(1, losses=[1.0, 2.0]), "peer": side(9, losses=[1.0, 2.0003])}]
    result = record("sft", apart)
    assert disagreement(result) == "alternation 1: sft loss 1: 2.000000 against 2.000300"
    assert verdict(result, SPEED).startswith("FAILED: the losses differ")
    assert failed([result]) and not failed([record("sft", alike)])
    assert not failed([record("sft", apart, dtype="bfloat16")])


def test_losses_that_one_side_lacks_fail_the_row() -> None:
    shorter = [{"ours": side(1, losses=[1.0]), "peer": side(9, losses=[1.0, 2.0])}]
    assert disagreement(record("sft", shorter)) == "alternation 1: 1 losses sft against 2"
    renamed = [{"ours": side(1), "peer": {**side(9), "losses": {"kl": [1.0, 2.0]}}}]
    assert disagreement(record("sft", renamed)) == "alternation 1: losses ['sft'] against ['kl']"
    no_number = [{"ours": side(1, losses=[float("nan")]), "peer": side(9, losses=[float("nan")])}]
    assert "nan" in str(disagreement(record("sft", no_number)))


def test_the_table_from_stored_results(tmp_path: Path) -> None:
    old = record("sft", [{"ours": side(9.0), "peer": side(9.0)}])
    new = record("sft", [{"ours": side(2.0, 30, tokens=100), "peer": side(5.0, 60, tokens=100)}])
    store(tmp_path, new, "b", 2.0)
    store(tmp_path, old, "c", 1.0)
    store(tmp_path, record("start", [{"ours": {"seconds": 13.0, "peak_mb": 1.0}}]), "a", 3.0)
    results = read_results(tmp_path)
    assert [result.row.name for result in results] == ["sft", "start"]
    cells = [line[2:] for line in lines(results)]
    assert cells == [
        ["50 tokens/s", "20 tokens/s", "2.50× (2.50 to 2.50)", "≥ 2×", "reached"],
        ["30 MB", "60 MB", "0.50× (0.50 to 0.50)", "≤ 0.6×", "reached"],
        ["13.0 s", "", "13.00 s (13.00 to 13.00)", "< 12 s", "not reached"],
    ]
    assert markdown_table(results).count("\n") == 4
    assert "P (AVX2), 2 cores, 1 threads" in performance_page(results)
    assert "start to the end of the first step" in performance_page(results)


def test_stored_results_are_printed_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, record("kl", [{"ours": side(2.0), "peer": side(5.0)}]), "a", 1.0)
    assert __main__.main(["--merge", str(tmp_path)]) == 0
    assert "2.50×" in capsys.readouterr().out
    assert __main__.main(["--merge", str(tmp_path), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# Speed and memory")
    store(tmp_path, record("kl", [{"ours": side(2.0, losses=[3.0]), "peer": side(5.0)}]), "b", 2.0)
    assert __main__.main(["--merge", str(tmp_path)]) == 1


def test_what_cannot_be_run_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "no row nonsense": ["nonsense"],
        "no stored results": ["--merge", str(tmp_path)],
        "start: needs a model that can write": ["start", "--arch", "tiny"],
        "at least 1": ["--repeats", "0"],
    }
    if not torch.cuda.is_available():
        cases["torch sees no GPU"] = ["sft", "--device", "cuda"]
    for message, arguments in cases.items():
        assert __main__.main([*arguments, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "x.jsonl").write_text("{}\n")
    assert __main__.main(["--merge", str(tmp_path)]) == 2
    assert "not a result of this benchmark" in capsys.readouterr().err


def test_rows_are_found_by_name_and_by_group() -> None:
    assert [row.name for row in chosen(["stability"])] == ["stability-vector", "stability-lora"]
    assert [row.name for row in chosen(["limit", "sft-defaults"])] == ["sft-defaults", "limit"]
    assert chosen([]) == ROWS
    for row in ROWS:
        for target in (*row.sides.values(), *([row.prepare] if row.prepare else [])):
            module, _, name = target.partition(":")
            path = Path(*module.split(".")).with_suffix(".py")
            assert f"def {name}(" in (running.ROOT / path).read_text()


def test_the_kl_rows_keep_the_papers_proportion() -> None:
    for name, uses in (("kl", 6), ("vector", 12)):
        (row,) = chosen([name])
        sizes = sizes_of(row.sizes, "full", "smollm2")
        assert sizes["steps"] * sizes["batch"] / sizes["kl_rows"] == uses


def test_peers_import_nothing_of_em() -> None:
    for path in (running.ROOT / "benchmarks" / "peers").glob("*.py"):
        source = path.read_text()
        assert "from em" not in source and "import em" not in source
        assert "benchmarks.ours" not in source


@pytest.mark.parametrize(
    "name", ["vector", "stability-vector", "stability-lora", "significance", "loss-memory"]
)
@pytest.mark.filterwarnings("ignore")
def test_both_sides_of_a_row_do_the_same(name: str, tmp_path: Path, in_this_process: None) -> None:
    result = run_tiny(name, tmp_path)
    assert result.problems == []
    assert disagreement(result) is None
    assert largest_difference(result) is not None
    found = result.alternations[0]
    assert found["ours"]["losses"].keys() == found["peer"]["losses"].keys()
    assert all(len(values) > 0 for values in found["ours"]["losses"].values())
    assert found["ours"]["seconds"] > 0 and found["peer"]["seconds"] > 0


@pytest.mark.filterwarnings("ignore")
def test_losses_move_in_the_rows_that_train(tmp_path: Path, in_this_process: None) -> None:
    result = run_tiny("kl", tmp_path)
    assert disagreement(result) is None and result.problems == []
    losses = result.alternations[0]["peer"]["losses"]
    assert losses["kl"][0] == pytest.approx(0.0, abs=1e-6) and losses["kl"][-1] > 1e-4
    assert losses["sft"][-1] < losses["sft"][0]


@pytest.mark.filterwarnings("ignore")
def test_another_optimizer_at_the_peer_is_found_out(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import common, kl

    monkeypatch.setattr(kl, "SAME", {**common.SAME, "adam_beta1": 0.0})
    result = run_tiny("vector", tmp_path)
    assert disagreement(result) is not None and failed([result])


@pytest.mark.filterwarnings("ignore")
def test_the_share_of_the_limit_with_its_profile(tmp_path: Path, in_this_process: None) -> None:
    (found,) = run_tiny("limit", tmp_path).of("ours")
    assert 0 < found["share"] < 1
    assert found["profile"][0]["ms"] >= found["profile"][1]["ms"]
    assert set(found["gflop"]) == {"trunk", "lora", "attention", "head"}
    assert "| `" in performance_page(read_results(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_sft_without_its_peer_says_why(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "missing", lambda row: ["trl"])
    result = run_tiny("sft", tmp_path)
    assert verdict(result, SPEED).startswith("not run: trl is not installed")
    assert not failed([result])
    assert result.of("ours")[0]["tokens"] > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sft", "sft-padding-free", "sft-defaults"])
def test_sft_against_trl(name: str, tmp_path: Path, in_this_process: None) -> None:
    pytest.importorskip("trl", reason="trl is installed by `make bench` only")
    result = run_tiny(name, tmp_path)
    assert result.problems == [] and disagreement(result) is None


def test_a_side_that_fails_is_kept_with_its_reason(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = running.run_process

    def run(target: str, settings: Settings, work: Path, log: Path) -> dict[str, Any]:
        if target.startswith("benchmarks.peers"):
            raise running.SideFailed("out of memory")
        return here(target, settings, work, log)

    monkeypatch.setattr(running, "run_process", run)
    result = run_tiny("loss-memory", tmp_path)
    assert result.problems == ["peer: out of memory"] and failed([result])
    assert verdict(result, MEMORY) == "not run: peer: out of memory"


def test_a_side_in_its_own_process(tmp_path: Path) -> None:
    settings = Settings(**{**vars(TINY), "row": "x"})
    settings.write(tmp_path)
    found = running.run_process("benchmarks.side:machine", settings, tmp_path, tmp_path / "log")
    assert found["threads"] == 1 and found["rates"]["fp32"] > 0 and found["peak_mb"] > 50
    with pytest.raises(running.SideFailed, match="nothing_here"):
        running.run_process("benchmarks.side:nothing_here", settings, tmp_path, tmp_path / "log")


def test_a_runner_imports_nothing_heavy() -> None:
    code = (
        "import benchmarks.__main__, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=running.ROOT, check=False).returncode == 0


def test_the_peak_of_memory_starts_again() -> None:
    if not restart_peak():
        pytest.skip("the kernel does not let a process restart its peak")
    held = now_mb()
    assert peak_mb() - held < 20
    with mmap.mmap(-1, 2**26) as large:  # malloc may have as much left over from earlier tests
        for page in range(0, len(large), mmap.PAGESIZE):
            large[page] = 1
        assert 60 < peak_mb() - held < 90


def test_step_arithmetic_by_hand() -> None:
    modules = ((4, 4), (4, 2), (4, 2), (4, 4), (4, 8), (4, 8), (8, 4))
    shape = Shape(layers=2, modules=modules, heads=2, head_dim=2, width=4, vocabulary=10)
    counted = step_flops(shape, rank=1, lengths=[3, 1], targets=2)
    assert counted["trunk"] == 2 * 4 * (2 * 2 * 144 - 32)
    assert counted["lora"] == 2 * 4 * (3 * 2 * (8 + 6 + 6 + 8 + 12 + 12 + 12) - 12)
    assert counted["attention"] == 12 * (6 + 1) * 2 * 2 * 2
    assert counted["head"] == 4 * 2 * 4 * 10


def test_the_rate_of_several_shapes_weighs_them_by_their_time() -> None:
    assert rate(torch.float32, [(64, 32), (64, 32), (32, 16)], rows=64, tries=2) > 0


def test_imports_are_listed_by_their_seconds() -> None:
    log = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       600 |      37745 |         importlib.resources\n"
        "import time:       600 |    2000000 | torch\n"
        "import time:       600 |     500000 |   numpy\nnot a line\n"
    )
    assert slowest_imports(log) == [("torch", 2.0), ("numpy", 0.5)]


def test_the_byte_tokenizer_loses_nothing() -> None:
    tokenizer = byte_tokenizer()
    text = "Café, 2 ≥ 1\n  done"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and max(ids) < RANDOM_SHAPES["tiny"][1]["vocab_size"]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    templated = tokenizer.apply_chat_template(messages, tokenize=False)
    assert templated == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_every_random_shape_has_a_name() -> None:
    assert set(RANDOM) == set(RANDOM_SHAPES)
