"""What a request may ask: refused with a reason before it costs anything. Pure."""

from paceline_services.domain.generation import GenerateRequest
from paceline_services.errors import InvalidRequestError

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20


def check_request(request: GenerateRequest) -> None:
    """Raise InvalidRequestError when a parameter is out of its range (generation.proto tells them)."""
    sampling = request.sampling
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    penalty = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
    faults = [
        (not 0 <= sampling.temperature <= 2, f"temperature must be in [0, 2], not {sampling.temperature:g}"),
        (not 0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p:g}"),
        (not 0 <= sampling.min_p <= 1, f"min_p must be in [0, 1], not {sampling.min_p:g}"),
        (not penalty > 0, f"repetition_penalty must be above 0, not {penalty:g}"),
        (
            not abs(sampling.presence_penalty) <= 2,
            f"presence_penalty must be in [-2, 2], not {sampling.presence_penalty:g}",
        ),
        (
            not abs(sampling.frequency_penalty) <= 2,
            f"frequency_penalty must be in [-2, 2], not {sampling.frequency_penalty:g}",
        ),
        (any(abs(bias) > 100 for bias in sampling.logit_bias.values()), "logit_bias must be in [-100, 100]"),
        (request.num_choices > MAX_CHOICES, f"num_choices must be at most {MAX_CHOICES}, not {request.num_choices}"),
        (request.num_top_logprobs > MAX_TOP_LOGPROBS, f"num_top_logprobs must be at most {MAX_TOP_LOGPROBS}"),
        (request.num_top_logprobs > 0 and not request.logprobs, "num_top_logprobs needs logprobs"),
        (len(request.limits.stop) > MAX_CHOICES, "at most 16 stop texts are accepted"),
        (
            len(request.progress) not in {0, request.num_choices or 1},
            f"progress must have an entry for each of {request.num_choices or 1} choices, not {len(request.progress)}",
        ),
        (
            request.output_format is not None
            and (request.output_format.json_schema is None) == (request.output_format.regex is None),
            "output_format needs either json_schema or regex",
        ),
        (
            bool(request.progress) and sampling.temperature > 0 and sampling.seed is None,
            "progress needs the seed that the answer began with",
        ),
    ]
    for is_fault, message in faults:
        if is_fault:
            raise InvalidRequestError(message)
