"""What commands do to the wires of the test network."""

import pytest

from support.switch_process import QUEUE_S, Wires


def test_cut_is_one_way_until_healed() -> None:
    wires = Wires()
    wires.obey({"cut": ["a", "b"]})
    assert wires.between("a", "b").find_arrival(1.0, 100) is None
    assert wires.between("b", "a").find_arrival(1.0, 100) == 1.0
    wires.obey({"heal": []})
    assert wires.between("a", "b").find_arrival(1.0, 100) == 1.0


def test_delay_and_rate_add_up_and_frames_queue() -> None:
    wires = Wires()
    wires.obey({"delay_s": 0.5, "between": ["a", "b"]})
    wires.obey({"rate_bits": 8000, "between": ["a", "b"]})
    wire = wires.between("a", "b")
    assert [wire.find_arrival(0.0, 100) for _ in range(2)] == pytest.approx([0.6, 0.7])


def test_full_queue_drops_frames() -> None:
    wires = Wires()
    wires.obey({"rate_bits": 8000, "between": ["a", "b"]})
    arrivals = [wires.between("a", "b").find_arrival(0.0, 100) for _ in range(20)]
    assert arrivals[-1] is None and max(filter(None, arrivals)) <= QUEUE_S + 0.2


def test_odd_command_is_refused() -> None:
    with pytest.raises(ValueError, match="no command"):
        Wires().obey({"melt": ["a", "b"]})
