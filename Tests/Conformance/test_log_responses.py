"""Answers of servers: one engine's log-probs."""

import json

import numpy as np
import pytest
from log_writers import ANSWERS, EXPECTED, ROLLOUTS, chat, read, same
from rollouts import write

from lockstep.logs import LogError, gather, open_log

@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_servers(tmp_path, name):
    path = ANSWERS[name](tmp_path / "answers.jsonl")
    log = open_log(path, batch_tokens=8)
    out = read(path, log=log)
    assert log.sides == ("rollout",) and log.format == "responses"
    same(out, EXPECTED, "rollout", "lengths", "token_ids")
    assert np.isnan(out["trainer"]).all() and out["mask"].all() and len(set(out["ids"].tolist())) == 12
    other = read(path, side="trainer")
    same({"rollout": other["trainer"]}, EXPECTED, "rollout")
    with pytest.raises(LogError, match="has the log-probs of the rollout only"):
        gather(open_log(path))


def test_an_answer_saved_as_an_indented_document(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(chat(2), indent=2))
    log = open_log(path)
    assert read(path, log=log)["rollout"].tolist() == ROLLOUTS.rollout[2].tolist()
    assert log.header == {"model": "m"}


def test_text_without_token_ids_has_none(tmp_path):
    (batch,) = open_log(write(tmp_path / "a.jsonl", chat(0, ids=False)))
    assert batch.token_ids is None and batch.tokens == 3
