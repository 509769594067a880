"""An example client of paceline.generation.v1.GenerationService: checks a head's health, then prints an answer as it comes.

    python docs/examples/generate.py 127.0.0.1:40123 smollm2-135m-instruct "Why is the sky blue?"

Needs grpcio, grpcio-health-checking and the generated protos (package paceline-proto). docs/grpc.md tells where heads listen.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.generation.v1 import generation_pb2, generation_pb2_grpc

SERVICE = "paceline.generation.v1.GenerationService"
TIMEOUT_S = 300.0


def make_request(model_id: str, question: str) -> generation_pb2.GenerateRequest:
    """One question, drawn with temperature 0.7, at most 128 tokens."""
    message = generation_pb2.Message(role="user", content=question)
    return generation_pb2.GenerateRequest(
        model_id=model_id,
        conversation=generation_pb2.Conversation(messages=[message]),
        sampling=generation_pb2.Sampling(temperature=0.7, seed=1),
        limits=generation_pb2.Limits(max_tokens=128),
    )


def print_answer(channel: grpc.Channel, request: generation_pb2.GenerateRequest) -> None:
    """Streams the events: started, deltas, finished, completed. Raises grpc.RpcError when the head refuses."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    for event in stub.Generate(request, timeout=TIMEOUT_S):
        kind = event.WhichOneof("event")
        if kind == "delta":
            print(event.delta.text, end="", flush=True)
        elif kind == "completed":
            done = event.completed
            print(f"\n[{done.num_prompt_tokens} + {done.num_completion_tokens} tokens]")


def main(address: str, model_id: str, question: str) -> int:
    """The process's exit code."""
    with grpc.insecure_channel(address) as channel:
        try:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                print(f"{address} does not serve {SERVICE} now", file=sys.stderr)
                return 1
            print_answer(channel, make_request(model_id, question))
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: generate.py HOST:PORT MODEL QUESTION")
    sys.exit(main(*sys.argv[1:]))
