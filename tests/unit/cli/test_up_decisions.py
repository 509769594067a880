"""What `paceline up` decides: command lines, shares, ports, names."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paceline_cli.models import NamedModel, name_model
from paceline_cli.settings import UpSettings
from paceline_cli.up.cluster import find_supervisor, lock_home
from paceline_cli.up.command import Wish, is_same, stop_cluster
from paceline_cli.up.etcd import find_warning
from paceline_cli.up.plan import (
    RESERVE_BYTES,
    EtcdPorts,
    control_plane_child,
    etcd_child,
    gateway_child,
    make_url,
    share_memory,
    worker_child,
)
from paceline_cli.up.ports import choose_http_port, find_free_port
from paceline_services.domain.runners import Precision
from paceline_services.errors import ConfigurationError, InvalidRequestError
from paceline_services.settings import read_settings

GIB = 1 << 30


@pytest.fixture
def settings(tmp_path: Path) -> UpSettings:
    return UpSettings(home=tmp_path, namespace="lab")


def test_every_child_gets_home_and_namespace(settings: UpSettings) -> None:
    children = [
        control_plane_child(0, settings, "http://e:2379", 5),
        worker_child(1, settings, ["a:1", "b:2"], GIB),
        gateway_child(settings, "127.0.0.1:80", ["a:1"]),
    ]
    for child in children:
        words = " ".join(child.command)
        assert f"--home {settings.home}" in words
        assert "--namespace lab" in words


def test_worker_joins_every_control_plane(settings: UpSettings) -> None:
    child = worker_child(1, settings, ["a:1", "b:2"], GIB)
    assert child.name == "worker-2"
    assert child.ready_word == "joined"
    assert "--join a:1,b:2" in " ".join(child.command)


def test_etcd_keeps_to_this_machine_and_compacts() -> None:
    words = " ".join(etcd_child("/bin/etcd", Path("/d"), EtcdPorts(1, 2)).command)
    assert "http://127.0.0.1:1" in words and "0.0.0.0" not in words
    assert "--auto-compaction-retention" in words


@pytest.mark.parametrize(
    ("available", "workers", "wanted", "share"),
    [
        (10 * GIB + RESERVE_BYTES, 2, None, 5 * GIB),
        (10 * GIB, 2, 7, 7),
        (GIB, 4, None, 1 << 28),
        (12 * GIB, 0, None, 10 * GIB),
    ],
)
def test_workers_share_what_is_available_less_a_reserve(
    available: int, workers: int, wanted: int | None, share: int
) -> None:
    assert share_memory(available, workers, wanted) == share


@pytest.mark.parametrize(
    ("address", "url"), [("127.0.0.1:80", "http://127.0.0.1:80"), ("0.0.0.0:81", "http://127.0.0.1:81")]
)
def test_url_can_be_opened_from_here(address: str, url: str) -> None:
    assert make_url(address) == url


def test_asked_port_that_is_taken_is_an_error_and_the_usual_one_moves() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            choose_http_port("127.0.0.1", port, 1)
        assert choose_http_port("127.0.0.1", None, port) != port
    free = find_free_port()
    assert choose_http_port("127.0.0.1", free, 1) == free
    assert choose_http_port("127.0.0.1", None, free) == free


def test_address_of_another_machine_is_named_as_such() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:8123"):
        choose_http_port("192.0.2.1", 8123, 1)


def test_home_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigurationError, match="another --home"),
        lock_home(UpSettings(home=tmp_path / "file" / "home")),
    ):
        pass


def test_home_is_held_by_one_cluster(settings: UpSettings) -> None:
    assert find_supervisor(settings.home) is None
    with lock_home(settings):
        assert find_supervisor(settings.home) == os.getpid()
        with pytest.raises(ConfigurationError, match="paceline down"), lock_home(settings):
            pass
    assert find_supervisor(settings.home) is None
    assert list(settings.run_folder.iterdir()) == []


def test_record_of_a_killed_cluster_stops_nobody(settings: UpSettings) -> None:
    settings.run_folder.mkdir(parents=True)
    (settings.run_folder / "cluster.json").write_text('{"pid": 1, "url": "http://127.0.0.1:1"}')
    (settings.run_folder / "up.lock").write_text("1")
    assert not stop_cluster(settings.home, 1)
    with (settings.run_folder / "up.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("etcd Version: 3.5.1\nGit SHA: x", True),
        ("etcd Version: 3.4.23", False),
        ("etcd Version: 3.5.17", False),
        ("", False),
    ],
)
def test_etcd_that_loses_writes_is_named(text: str, is_warned: bool) -> None:
    assert bool(find_warning(text)) is is_warned


def test_model_names(tmp_path: Path) -> None:
    gguf = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf.touch()
    folder = tmp_path / "My Model"
    folder.mkdir()
    (tmp_path / "library" / "known").mkdir(parents=True)
    (tmp_path / "library" / "known" / "config.json").touch()
    library = tmp_path / "library"
    assert name_model(str(gguf), None, library) == NamedModel("smollm2-135m-instruct", str(gguf))
    assert name_model(str(gguf), "mine", library).model_id == "mine"
    assert name_model(str(folder), None, library) == NamedModel("my-model", str(folder))
    assert name_model("known", None, library) == NamedModel("known", "")
    assert name_model("org/model@v1", None, library) == NamedModel("org/model", "org/model@v1")


def test_what_names_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        name_model("./none.gguf", None, tmp_path)
    with pytest.raises(ConfigurationError, match="is no model here"):
        name_model("nosuch", None, tmp_path)
    with pytest.raises(InvalidRequestError):
        name_model("org/model", "bad id", tmp_path)


@pytest.mark.parametrize(
    ("changed", "is_kept"),
    [
        ({}, True),
        ({"shards": []}, True),
        ({"precision": "exact"}, False),
        ({"num_stages": 1}, False),
        ({"shards": [{}]}, False),
        ({"location": "/elsewhere"}, False),
    ],
)
def test_instance_of_an_earlier_run_is_kept_when_it_is_the_wanted_one(
    changed: dict[str, object], is_kept: bool
) -> None:
    wish = Wish(NamedModel("demo", "/models/demo"), 2, 0, Precision.FAST)
    old = {"num_stages": 2, "shards": [{}, {}], "location": "/models/demo", "precision": "fast"}
    assert is_same(old | changed, wish) is is_kept


def test_precision_is_exact_unless_chosen(tmp_path: Path) -> None:
    assert read_settings(UpSettings, home=tmp_path).precision is Precision.EXACT
    assert read_settings(UpSettings, home=tmp_path, precision="fast").precision is Precision.FAST


@pytest.mark.parametrize("command", [("up", "--no-worker"), ("place", "demo")])
def test_unknown_precision_is_one_line_before_anything_is_done(command: tuple[str, ...], tmp_path: Path) -> None:
    words = (sys.executable, "-m", "paceline_cli", *command, "--home", str(tmp_path), "--precision", "odd")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paceline: ")
    assert "precision" in line and "exact" in line and "fast" in line
