"""Prompts are known again by their beginnings, and what is remembered stays bounded."""

from hypothesis import given
from hypothesis import strategies as st

from paceline_api_gateway.routing.affinity import (
    MAX_HOLDERS,
    TEXT_BLOCK_CHARACTERS,
    TOKEN_BLOCK,
    Holder,
    PrefixHash,
    PrefixMemory,
    hash_prefixes,
    holder_of,
)
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Message,
    TokenIds,
    ToolCall,
    ToolDefinition,
)
from paceline_services.ids import Epoch, InstanceId, ModelId
from support.head import MODEL, make_instance

A, B = (InstanceId("a"), Epoch(1)), (InstanceId("b"), Epoch(1))
messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant"]),
    content=st.text(max_size=5),
    tool_calls=st.lists(
        st.builds(ToolCall, st.text(max_size=2), st.text(max_size=2), st.text(max_size=2)), max_size=1
    ).map(tuple),
)
conversations = st.lists(messages, min_size=1, max_size=8)
holders = st.builds(lambda name, epoch: (InstanceId(name), Epoch(epoch)), st.sampled_from("abcdef"), st.integers(1, 2))


def chat(*parts: Message, model: str = MODEL, tools: tuple[ToolDefinition, ...] = ()) -> tuple[PrefixHash, ...]:
    return hash_prefixes(GenerateRequest(ModelId(model), conversation=Conversation(parts, tools)))


def text(content: str) -> tuple[PrefixHash, ...]:
    return hash_prefixes(GenerateRequest(MODEL, text=content))


def tokens(*ids: int) -> tuple[PrefixHash, ...]:
    return hash_prefixes(GenerateRequest(MODEL, token_ids=TokenIds(ids)))


def count_shared(one: tuple[PrefixHash, ...], other: tuple[PrefixHash, ...]) -> int:
    return len(set(one) & set(other))


@given(conversations, conversations)
def test_conversations_share_as_many_hashes_as_first_messages(one: list[Message], other: list[Message]) -> None:
    num_common = 0
    while num_common < min(len(one), len(other)) and one[num_common] == other[num_common]:
        num_common += 1
    first, second = chat(*one), chat(*other)
    assert len(first) == len(one)
    assert first[:num_common] == second[:num_common] and count_shared(first, second) == num_common


def test_other_models_and_other_tools_share_nothing() -> None:
    hello = Message("user", "Hello")
    assert not count_shared(chat(hello), chat(hello, model="other"))
    assert not count_shared(chat(hello), chat(hello, tools=(ToolDefinition("search"),)))


def test_parts_of_a_message_are_kept_apart() -> None:
    assert not count_shared(chat(Message("user", "ab")), chat(Message("user", "a", "b")))
    assert not count_shared(chat(Message("user", "ab")), chat(Message("user", "a"), Message("user", "b")))


def test_texts_and_token_ids_are_known_by_whole_blocks() -> None:
    size = TEXT_BLOCK_CHARACTERS
    assert text("x" * (size - 1)) == ()
    assert len(text("x" * size)) == 1 and len(text("x" * (3 * size - 1))) == 2
    assert count_shared(text("x" * 2 * size + "a" * size), text("x" * 2 * size + "b" * size)) == 2
    same, size = [7] * TOKEN_BLOCK, TOKEN_BLOCK
    assert tokens(*range(size - 1)) == () and len(tokens(*range(2 * size))) == 2
    assert count_shared(tokens(*same, *range(size)), tokens(*same, *range(1, size + 1))) == 1
    assert not count_shared(text("x" * size), tokens(*same))


def test_text_that_no_encoding_has_is_hashed_too() -> None:
    assert len(text("\ud800" * TEXT_BLOCK_CHARACTERS)) == 1
    assert len(chat(Message("user", "\ud800"))) == 1


def test_long_prompt_takes_few_entries_spread_over_all_of_it() -> None:
    block = "x" * TEXT_BLOCK_CHARACTERS
    num_short, num_long = len(text(block * 64)), len(text(block * 4096))
    assert (num_short, num_long) == (64, 64 + 6 * 32)
    assert count_shared(text(block * 2048 + "y" * len(block) * 2048), text(block * 4096)) == 64 + 5 * 32


def test_longest_prefix_that_a_candidate_holds_decides() -> None:
    system, hello, answer = Message("system", "s"), Message("user", "Hello"), Message("assistant", "Hi")
    memory = PrefixMemory()
    memory.remember(chat(system), B)
    memory.remember(chat(system, hello), A)
    assert memory.find(chat(system, hello, answer), [A, B]) == {A}
    assert memory.find(chat(system, hello, answer), [B]) == {B}
    assert memory.find(chat(system, answer), [A, B]) == {A, B}
    assert memory.find(chat(hello), [A, B]) == frozenset()


def test_next_epoch_of_an_instance_knows_nothing() -> None:
    memory = PrefixMemory()
    memory.remember(chat(Message("user", "Hello")), holder_of(make_instance("a", epoch=1)))
    assert not memory.find(chat(Message("user", "Hello")), [holder_of(make_instance("a", epoch=2))])


def test_longest_unused_prompts_are_forgotten_and_their_ends_first() -> None:
    memory = PrefixMemory(max_entries=3)
    shared, first, second = Message("system", "s"), Message("user", "1"), Message("user", "2")
    memory.remember(chat(shared, first), A)
    memory.remember(chat(shared, second), A)
    memory.remember(chat(Message("user", "3")), B)
    assert len(memory) == 3
    assert not memory.find(chat(shared, first)[1:], [A])
    assert memory.find(chat(shared, second), [A]) == {A} and memory.find(chat(Message("user", "3")), [B]) == {B}


@given(st.integers(1, 6), st.lists(st.tuples(conversations, holders), min_size=1, max_size=12))
def test_memory_stays_bounded_and_knows_the_last_prompt(size: int, sent: list[tuple[list[Message], Holder]]) -> None:
    memory = PrefixMemory(max_entries=size)
    told: dict[PrefixHash, list[Holder]] = {}
    for conversation, holder in sent:
        prefixes = chat(*conversation)
        memory.remember(prefixes, holder)
        for prefix in prefixes:
            told.setdefault(prefix, []).append(holder)
        assert len(memory) <= size
        found = memory.find(prefixes, [one for _, one in sent])
        assert holder in memory.find(prefixes, [holder]) and 0 < len(found) <= MAX_HOLDERS
        assert any(found <= set(told[prefix]) for prefix in prefixes)
        assert not memory.find(prefixes, [])
