"""Clients have stable names that tell nothing of their keys."""

import re

from paceline_api_gateway.identity import name_client, parse_request_id, read_key

KEY = "sk-secret-1"


def test_key_names_its_client_wherever_it_comes_from_and_in_whatever_header() -> None:
    name = name_client({"authorization": f"Bearer {KEY}"}, "10.0.0.1")
    assert name == name_client({"authorization": f"bearer  {KEY} "}, "10.0.0.2")
    assert name == name_client({"x-api-key": KEY}, "10.0.0.3")
    assert name != name_client({"x-api-key": "sk-secret-2"}, "10.0.0.1")


def test_name_is_16_hex_digits_and_the_same_in_every_process() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", name_client({}, ""))
    assert name_client({"x-api-key": KEY}, "10.0.0.1") == "118e5c22dda2540e"


def test_without_a_key_the_address_names_the_client_and_no_header_does() -> None:
    name = name_client({}, "10.0.0.1")
    assert name != name_client({}, "10.0.0.2")
    for headers in ({"x-forwarded-for": "10.0.0.9"}, {"authorization": "Basic dTpw"}, {"authorization": "Bearer "}):
        assert name_client(headers, "10.0.0.1") == name


def test_key_that_spells_an_address_is_not_that_address() -> None:
    assert name_client({"x-api-key": "10.0.0.1"}, "") != name_client({}, "10.0.0.1")


def test_no_key_is_empty() -> None:
    assert read_key({}) == "" and read_key({"authorization": "Bearer"}) == ""


def test_request_id_of_a_client_is_kept_as_far_as_it_can_be_shown() -> None:
    assert parse_request_id("mine-1") == "mine-1"
    assert parse_request_id("a\tb\x7f c\xe9") == "abc"
    assert len(parse_request_id("x" * 1000)) == 128
    assert parse_request_id(None) == "" == parse_request_id(" ")
