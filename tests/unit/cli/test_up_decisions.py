"""What `paceline up` decides: command lines, shares, ports, names."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paceline_cli.models import NamedModel, name_draft, name_model
from paceline_cli.placing import choose_removed
from paceline_cli.settings import UpSettings
from paceline_cli.up.cluster import find_supervisor, lock_home
from paceline_cli.up.command import Wish, choose_replaced, is_same, stop_cluster
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
from paceline_services.domain.instances import Strategy
from paceline_services.domain.runners import Precision
from paceline_services.errors import ConfigurationError, InvalidRequestError, NotFoundError
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


OLD: dict[str, object] = {
    **{"instance_id": "a", "model_id": "demo", "location": "/models/demo", "num_stages": 2, "shards": [{}, {}]},
    **{"precision": "fast", "kv_bits": 0, "draft": "", "strategy": "pipeline", "tensor_size": 0},
}


@pytest.mark.parametrize(
    ("changed", "is_kept"),
    [
        ({}, True),
        ({"shards": []}, True),
        ({"precision": "exact"}, False),
        ({"kv_bits": 4}, False),
        ({"draft": "small"}, False),
        ({"num_stages": 1}, False),
        ({"shards": [{}]}, False),
        ({"location": "/elsewhere"}, False),
    ],
)
def test_instance_of_an_earlier_run_is_kept_when_it_is_the_wanted_one(
    changed: dict[str, object], is_kept: bool
) -> None:
    wish = Wish(NamedModel("demo", "/models/demo"), 2, 0, Precision.FAST)
    assert is_same(OLD | changed, wish) is is_kept


@pytest.mark.parametrize(
    ("stages", "size", "changed", "is_kept"),
    [
        (0, 2, {}, True),
        (0, 0, {}, True),
        (0, 0, {"tensor_size": 0, "shards": [{}]}, True),
        (0, 2, {"shards": [{}]}, False),
        (0, 3, {}, False),
        (0, 2, {"strategy": "pipeline", "tensor_size": 0}, False),
    ],
)
def test_ranks_of_an_earlier_run_are_kept_where_they_are_those_wanted(
    stages: int, size: int, changed: dict[str, object], is_kept: bool
) -> None:
    wish = Wish(*(NamedModel("demo", ""), stages, 0, Precision.FAST), strategy=Strategy.TENSOR, tensor_size=size)
    tensor = OLD | {"strategy": "tensor", "num_stages": 0, "tensor_size": 2}
    assert is_same(tensor | changed, wish) is is_kept


@pytest.mark.parametrize(
    ("replicas", "is_fixed", "replaced"),
    [(1, False, ["b"]), (1, True, ["b", "c"]), (2, True, ["b"]), (3, True, ["b"])],
)
def test_instances_beyond_the_asked_number_end_only_when_it_was_asked(
    replicas: int, is_fixed: bool, replaced: list[str]
) -> None:
    wish = Wish(NamedModel("demo", ""), 2, 0, Precision.FAST, num_replicas=replicas, is_number_fixed=is_fixed)
    kept = [OLD | {"instance_id": name} for name in "ac"]
    other_shape, other_model = OLD | {"instance_id": "b", "num_stages": 1}, OLD | {"instance_id": "d", "model_id": "x"}
    assert choose_replaced([kept[0], other_shape, kept[1], other_model], wish) == replaced


def test_workers_have_metrics_only_when_asked_each_on_its_port(tmp_path: Path) -> None:
    for port, told in ((0, ("0", "0")), (9100, ("9100", "9101"))):
        asked = UpSettings(home=tmp_path, metrics_port=port)
        commands = [worker_child(index, asked, ["a:1"], GIB).command for index in range(2)]
        assert tuple(words[words.index("--metrics-port") + 1] for words in commands) == told


INSTANCES = [
    {"instance_id": "demo", "model_id": "demo"},
    {"instance_id": "demo-2", "model_id": "demo"},
    {"instance_id": "mine", "model_id": "owner/other"},
]


@pytest.mark.parametrize(
    ("name", "is_all", "removed", "left"),
    [
        ("demo-2", False, ["demo-2"], []),
        ("demo", False, ["demo"], ["demo-2"]),
        ("demo", True, ["demo", "demo-2"], []),
        ("demo-2", True, ["demo", "demo-2"], []),
        ("owner/other", False, ["mine"], []),
        ("owner/other", True, ["mine"], []),
    ],
)
def test_what_a_name_removes(name: str, is_all: bool, removed: list[str], left: list[str]) -> None:
    assert choose_removed(INSTANCES, name, is_all=is_all) == (removed, left)


def test_a_name_of_nothing_is_told_with_what_is_there() -> None:
    with pytest.raises(NotFoundError, match="no instance and no model 'x'; there are: demo, demo-2, mine"):
        choose_removed(INSTANCES, "x", is_all=False)


def test_a_draft_is_named_as_a_model_or_with_an_id(tmp_path: Path) -> None:
    folder = tmp_path / "Small Model"
    folder.mkdir()
    assert name_draft("known", tmp_path, {"known"}) == NamedModel("known", "")
    assert name_draft("org/small", tmp_path, ()) == NamedModel("org/small", "org/small")
    assert name_draft(str(folder), tmp_path, ()) == NamedModel("small-model", str(folder))
    assert name_draft(f"tiny={folder}", tmp_path, ()) == NamedModel("tiny", str(folder))
    with pytest.raises(ConfigurationError, match="is no model here"):
        name_draft("nosuch", tmp_path, ())


def test_precision_is_exact_unless_chosen(tmp_path: Path) -> None:
    assert read_settings(UpSettings, home=tmp_path).precision is Precision.EXACT
    assert read_settings(UpSettings, home=tmp_path, precision="fast").precision is Precision.FAST


@pytest.mark.parametrize("command", [("up", "--no-worker"), ("place", "demo")])
def test_other_kv_bits_are_one_line_before_anything_is_done(command: tuple[str, ...], tmp_path: Path) -> None:
    words = (sys.executable, "-m", "paceline_cli", *command, "--home", str(tmp_path), "--kv-bits", "5")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paceline: ")
    assert "kv_bits 5 is not possible: use 8 or 4" in line


@pytest.mark.parametrize("command", [("up", "--no-worker"), ("place", "demo")])
def test_unknown_precision_is_one_line_before_anything_is_done(command: tuple[str, ...], tmp_path: Path) -> None:
    words = (sys.executable, "-m", "paceline_cli", *command, "--home", str(tmp_path), "--precision", "odd")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paceline: ")
    assert "precision" in line and "exact" in line and "fast" in line
