"""Which column holds what: the names of the field, and those that the user gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .rows import BadRow, Wanted

# Trainer and rollout log-probs as each framework calls them, with its mask and token ids (several where its
# versions differ). The first whose two log-prob columns are there is it.
FRAMEWORKS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "Lockstep": ("trainer", "rollout", ("mask",), ("token_ids",)),
    "verl": ("old_log_probs", "rollout_log_probs", ("response_mask",), ("responses",)),
    "TRL": ("old_per_token_logps", "sampling_per_token_logps", ("completion_mask",), ("completion_ids",)),
    "OpenRLHF": ("action_log_probs", "rollout_log_probs", ("action_mask",), ()),
    "SkyRL": ("action_log_probs", "rollout_logprobs", ("loss_mask", "response_mask"), ("response_ids",)),
    "slime": ("log_probs", "rollout_log_probs", ("loss_masks", "loss_mask"), ("tokens",)),
    "NeMo-RL": (
        "prev_logprobs",
        "generation_logprobs",
        ("token_mask", "token_loss_mask"),
        ("input_ids", "token_ids"),
    ),
    "AReaL": ("prox_logp", "logprobs", ("loss_mask",), ("input_ids",)),
    "prime-rl": ("trainer_logprobs", "inference_logprobs", ("loss_mask",), ("token_ids",)),
}

TRAINER = ("trainer_log_probs", "trainer_logps", "trainer_logp", "logp_pi")
ROLLOUT = ("rollout_logps", "rollout_logp", "logp_mu")
# Log-probs of one engine, which the name does not tell.
EITHER = ("logprobs", "log_probs", "logps", "per_token_logps", "token_logprobs")
MASKS = ("mask", "loss_mask", "response_mask", "completion_mask", "action_mask")
TOKEN_IDS = ("token_ids", "completion_ids", "response_ids", "responses")
IDS = ("id", "sequence_id", "request_id")
STEPS = ("step", "global_step", "training_step")
ENVIRONMENTS = ("env_name", "environment", "data_source")
POSITIONS = ("position",)

# Of these the tokens that have log-probs are the last ones: the prompt comes first.
WITH_PROMPT = {"tokens"}

# What a log says of how it was made, once or beside each sequence.
HEADER = (
    "model",
    "engine",
    "trainer_engine",
    "rollout_engine",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "logprobs_mode",
    "recipe",
    "trainer_recipe",
    "rollout_recipe",
)

# In place of a value that is not the same for all sequences.
MIXED = "mixed"

LOCKSTEP_ID = "lockstep_id"


@dataclass(frozen=True)
class Columns:
    """The columns of one log, by role."""

    names: Mapping[str, str]
    framework: str
    """Whose names they are, "" where the user gave them or they are anybody's."""

    def name(self, role: str) -> str | None:
        return self.names.get(role)


def resolve(there: Collection[str], wanted: Wanted) -> Columns | None:
    """The roles of the columns that are there; None where no log-probs are among them.

    Raises BadRow for a column that the user named and that is not there.
    """
    given = wanted.columns
    for role, name in given.items():
        if name not in there:
            found = ", ".join(sorted(map(repr, there))[:16]) or "none"
            raise BadRow(f"there is no such column for {role} (found: {found[:800]})", name)
    names, framework = dict(given), ""
    if "trainer" not in given and "rollout" not in given:
        for candidate, (trainer, rollout, _, _) in FRAMEWORKS.items():
            if trainer in there and rollout in there:
                names.update(trainer=trainer, rollout=rollout)
                framework = candidate
                break
    if framework == "":
        used = set(given.values())
        for role, others, at in (("trainer", TRAINER, 0), ("rollout", ROLLOUT, 1)):
            known = dict.fromkeys([entry[at] for entry in FRAMEWORKS.values()] + list(others))
            name = next(
                (name for name in known if name in there and name not in used and name not in EITHER), None
            )
            if role not in names and name is not None:
                names[role] = name
        if "trainer" not in names and "rollout" not in names:
            name = next((name for name in EITHER if name in there), None)
            if name is None:
                return None
            names[wanted.side] = name
    masks, token_ids = FRAMEWORKS[framework][2:] if framework else ((), ())
    for role, known in (
        ("mask", masks + MASKS),
        ("token_ids", token_ids + TOKEN_IDS),
        ("step", STEPS),
        ("id", (LOCKSTEP_ID, *IDS)),
        ("environment", ENVIRONMENTS),
        ("position", POSITIONS),
    ):
        name = next((name for name in known if name in there), None)
        if role not in names and name is not None:
            names[role] = name
    if not wanted.token_ids:
        names.pop("token_ids", None)
    return Columns(names, framework)
