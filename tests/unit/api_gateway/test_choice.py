"""Which instance answers a request, and what is said when none does."""

import pytest

from paceline_api_gateway.routing.choice import Absent, Coming, Ready, choose_instance, list_models
from paceline_services.domain.instances import InstanceState
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId
from support.head import MODEL, make_instance, make_state


def test_active_instance_with_fewest_in_flight_is_chosen() -> None:
    state = make_state(make_instance("a", "h:1"), make_instance("b", "h:2"))
    chosen = choose_instance(state, MODEL, {InstanceId("a"): 2, InstanceId("b"): 1})
    assert isinstance(chosen, Ready) and chosen.instance.spec.instance_id == "b"


def test_among_equals_the_lowest_id_is_chosen() -> None:
    state = make_state(make_instance("b", "h:2"), make_instance("a", "h:1"))
    chosen = choose_instance(state, MODEL, {})
    assert isinstance(chosen, Ready) and chosen.instance.spec.instance_id == "a"


def test_instances_of_other_models_are_not_considered() -> None:
    state = make_state(make_instance("a", "h:1", model="other"), models=(MODEL, "other"))
    assert isinstance(choose_instance(state, MODEL, {}), Absent)


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.LOADING, InstanceState.RECOVERING])
def test_instance_on_its_way_tells_how_far_it_is(state: InstanceState) -> None:
    coming = choose_instance(make_state(make_instance("a", state=state, progress=0.4, message="stage 1")), MODEL, {})
    assert isinstance(coming, Coming)
    assert "40%" in coming.message and "stage 1" in coming.message


def test_instance_that_loads_is_waited_for_beside_one_that_failed() -> None:
    state = make_state(make_instance("a", state=InstanceState.FAILED), make_instance("b", state=InstanceState.LOADING))
    assert isinstance(choose_instance(state, MODEL, {}), Coming)


@pytest.mark.parametrize("state", [InstanceState.UNPLACEABLE, InstanceState.FAILED])
def test_instance_that_cannot_run_is_an_error_with_its_reason(state: InstanceState) -> None:
    with pytest.raises(UnavailableError, match="2 GiB short"):
        choose_instance(make_state(make_instance("a", state=state, message="2 GiB short")), MODEL, {})


def test_unknown_model_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="one, two") as caught:
        choose_instance(make_state(models=("two", "one")), ModelId("nope"), {})
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_models_are_those_known_and_those_with_an_instance() -> None:
    state = make_state(make_instance("a", model="placed"), models=("on-disk",))
    assert list_models(state) == {"on-disk": False, "placed": True}
