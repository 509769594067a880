"""Texts that the demo model is told to edit, and what it is told."""

from dataclasses import dataclass

from bench.tables import ABSENT


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction and the text after it. wanted: what the answer would hold if it were followed; empty where nothing new is asked."""

    title: str
    instruction: str
    text: str
    wanted: str
    max_tokens: int

    def describe(self, answer: str) -> str:
        """Whether the answer holds what was wanted."""
        return ABSENT if not self.wanted else "changed" if self.wanted in answer else "not changed"


_LIGHTHOUSE = """\
The lighthouse at Cape Wren was built in 1871 and stands on a rock forty metres above the sea. Thomas Reed has been its keeper \
since 1998. He lives in the small white house beside the tower with his wife and two dogs. Every evening Thomas Reed climbs the \
212 steps, cleans the glass and writes the weather into a book. The light can be seen from thirty kilometres away. In 2004 the \
lamp was replaced by an electric one, and since then it turns by itself. The old lamp stands in the museum in the harbour, next to \
the first radio of the station. In summer visitors come by boat, and Thomas Reed shows them the tower for a small fee. In winter \
nobody comes for weeks. The storm of 2013 broke three windows and carried away the roof of the shed. The town paid for a new roof, \
and the fishermen helped to build it."""
_LIBRARY = """\
The library in Harbour Lane was built in 1902 and has three floors. The ground floor holds newspapers, maps and books for \
children. On the second floor there are novels from forty countries, sorted by language. The third floor is kept for students, who \
may stay until ten in the evening. Anna Keller has been the head of the library since 2011. Before that, Anna Keller taught \
history at a school in the next town. She started the reading club that meets every Thursday at seven, and she asked the city to \
open the library on Sundays. Last year more than eighty thousand people came, twice as many as ten years ago. Anna Keller thinks \
that the warm rooms in winter are one reason, and the free coffee is another. This spring the roof will be repaired, and the third \
floor will be closed for six weeks."""
_ORDERS = """\
{"name": "Anna Keller", "street": "12 Harbour Lane", "city": "Leeds", "orders": [
  {"item": "lamp", "price": 49, "paid": true},
  {"item": "chair", "price": 120, "paid": true},
  {"item": "desk", "price": 260, "paid": false},
  {"item": "shelf", "price": 75, "paid": false}
], "phone": "0113 555 0148", "since": 2011, "newsletter": false, "language": "English"}"""

EDITS = (
    Edit("name in a text", "Copy this text and change Thomas Reed to Peter Hall:", _LIGHTHOUSE, "Peter Hall", 240),
    Edit(
        "name in JSON, 96 tokens", "Copy this text and change Anna Keller to Laura Smith:", _ORDERS, "Laura Smith", 96
    ),
    Edit("proofreading", "Proofread this text. Keep all that is right.", _LIBRARY, "", 200),
)
