"""Which instances have probably computed a prompt's beginning already. Pure.

A prompt is known by a chain of hashes, one for each of its beginnings: a conversation's end where its messages do, those of texts and
token ids at the ends of blocks. The gateway holds no model files, so it cannot know tokens; equal messages give equal tokens, and that
is enough. What is remembered is a guess: a head may have dropped the KV cache since, and then computes it again.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from paceline_services.domain.generation import GenerateRequest
from paceline_services.domain.instances import Instance
from paceline_services.ids import Epoch, InstanceId

PrefixHash = bytes
Holder = tuple[InstanceId, Epoch]
"""An instance's next epoch has new runners, and their KV caches are empty."""

TEXT_BLOCK_CHARACTERS = 256
TOKEN_BLOCK = 64
MAX_ENTRIES = 16384
MAX_HOLDERS = 4
"""Instances remembered for one prefix; a system prompt that all clients share is soon on several."""
_DENSE_BITS = 6
_HASH_BYTES = 8


def holder_of(instance: Instance) -> Holder:
    return instance.spec.instance_id, instance.epoch


def hash_prefixes(request: GenerateRequest) -> tuple[PrefixHash, ...]:
    """The hashes of the prompt's beginnings, shortest first; none for a prompt shorter than a block.

    The first 64 ends all count, later ones ever more sparsely (32 for each doubling), so that a long prompt takes few entries.
    """
    digest = blake2b(request.model_id.encode(), digest_size=_HASH_BYTES).digest()
    hashes = []
    for number, part in enumerate(_split(request), 1):
        digest = blake2b(part, digest_size=_HASH_BYTES, key=digest).digest()
        if number % (1 << max(0, number.bit_length() - _DENSE_BITS)) == 0:
            hashes.append(digest)
    return tuple(hashes)


def _split(request: GenerateRequest) -> Iterator[bytes]:
    """The prompt's parts, each as bytes that no other part has."""
    if request.conversation is not None:
        # Templates put tools before the messages: with other tools nothing is shared.
        tools = repr(request.conversation.tools)
        for message in request.conversation.messages:
            yield f"{tools}{message!r}".encode("utf-8", "surrogatepass")
            tools = ""
    elif request.text is not None:
        text, size = request.text, TEXT_BLOCK_CHARACTERS
        for start in range(0, len(text) - size + 1, size):
            yield b"text" + text[start : start + size].encode("utf-8", "surrogatepass")
    elif request.token_ids is not None:
        ids, size = request.token_ids.ids, TOKEN_BLOCK
        for start in range(0, len(ids) - size + 1, size):
            yield b"ids" + struct.pack(f"<{size}I", *ids[start : start + size])


class PrefixMemory:
    """Who was sent which prefix; forgets those that were not asked about for longest."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._holders: OrderedDict[PrefixHash, tuple[Holder, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def remember(self, prefixes: Sequence[PrefixHash], holder: Holder) -> None:
        """The holder computes a prompt with these prefixes."""
        for prefix in reversed(prefixes):  # the shortest is shared by most: it is forgotten last
            others = [one for one in self._holders.pop(prefix, ()) if one != holder]
            self._holders[prefix] = (holder, *others[: MAX_HOLDERS - 1])
        while len(self._holders) > self._max_entries:
            self._holders.popitem(last=False)

    def find(self, prefixes: Sequence[PrefixHash], candidates: Iterable[Holder]) -> frozenset[Holder]:
        """The candidates that hold the longest prefix that any of them holds; empty when none holds any."""
        usable = frozenset(candidates)
        for prefix in reversed(prefixes):
            if found := usable.intersection(self._holders.get(prefix, ())):
                return found
        return frozenset()
