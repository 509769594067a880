"""What `make bench` computes from what it measured: ratios, divergences, and the document it keeps."""

from pathlib import Path

import numpy as np
import pytest
from bench.divergence import Divergence
from bench.peers import choose_flags
from bench.rounds import Case, Ledger, decode
from bench.system import Timing
from bench.tables import Section, lowest, update_document

OURS, THEIRS = Case("ours", 1, 64), Case("theirs", 1, 64)


def make_timing(token_s: float) -> Timing:
    return Timing(64, 1.0, (token_s,) * 3, (1, 2, 3))


def test_ratio_is_the_median_of_the_ratios_of_common_rounds() -> None:
    ledger = Ledger()
    for number, (mine, theirs) in enumerate([(0.1, 0.2), (0.1, 0.4), (0.1, 0.3)]):
        ledger.add(OURS, number, make_timing(mine))
        ledger.add(THEIRS, number, make_timing(theirs))
    ledger.add(OURS, 9, make_timing(99.0))
    assert ledger.ratio(OURS, THEIRS, decode) == pytest.approx(3.0)


def test_what_was_not_measured_has_no_ratio() -> None:
    ledger = Ledger()
    ledger.add(OURS, 0, make_timing(0.1))
    assert ledger.median(THEIRS, decode) is None
    assert ledger.ratio(OURS, THEIRS, decode) is None
    assert lowest([1.5, None]) is None
    assert lowest([1.5, 1.2]) == 1.2


def test_divergence_from_itself_is_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    divergence = Divergence()
    divergence.add(logits, logits, np.array([0, 6, 3, 3, 1]))
    assert (divergence.num_tokens, divergence.mean_kl, divergence.top1_agreement) == (5, 0.0, 1.0)


def test_divergence_by_hand() -> None:
    """Base [3/4, 1/4] against [1/2, 1/2]: KL = log 2 - H(3/4); the token that follows has probability 1/2."""
    base, mine = np.log([[3.0, 1.0]]).astype(np.float32), np.zeros((1, 2), np.float32)
    mine[0, 1] = 1e-7
    divergence = Divergence()
    divergence.add(base, mine, np.array([1]))
    assert divergence.mean_kl == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-5)
    assert divergence.perplexity == pytest.approx(2.0, rel=1e-5)
    assert divergence.top1_agreement == 0.0


def test_document_keeps_sections_that_did_not_run(tmp_path: Path) -> None:
    document = tmp_path / "benchmark.md"
    update_document(document, {"kernels": Section("one", {}), "cluster": Section("two", {})})
    update_document(document, {"kernels": Section("three", {})})
    text = document.read_text()
    assert "three" in text
    assert "two" in text
    assert "one" not in text.split("## ", 1)[1]


def test_llama_cpp_is_built_for_this_machines_instructions_but_amx() -> None:
    flags = choose_flags(frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8"}))
    assert "-DGGML_NATIVE=OFF" in flags
    assert "-DGGML_AVX512_VNNI=ON" in flags
    assert not any("AMX" in flag for flag in flags)
    assert "-DGGML_NATIVE=ON" in choose_flags(frozenset())
