"""What OpenAI's clients are sent, byte for byte: PACELINE_RECORD=1 writes the transcripts anew, and git shows what has changed."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.golden import GOLDEN, check_golden
from support.golden_openai import CASES, ask, write_transcript
from support.head import MODEL
from support.scripts_openai import Rig, run_rig


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path_factory.mktemp("gateway")) as running:
        # A chat waits for the gateway to have heard of the cluster; a list of models does not.
        await running.client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_transcript_is_the_recorded_one(rig: Rig, name: str) -> None:
    case = CASES[name]
    rig.head.answer = case.answer
    check_golden(f"openai/{name}.txt", write_transcript(case, await ask(rig.http, case)))


def test_every_transcript_belongs_to_a_case() -> None:
    assert {path.stem for path in (GOLDEN / "openai").glob("*.txt")} == set(CASES)
