"""Traces for tests: of a made-up run, with any texts, in any size."""

import json
import math
import random


def header(stages=("topk", "topp"), **fields):
    return {
        "type": "header",
        "nvg_trace": 1,
        "nvg": "0",
        "model": "made-up",
        "dtype": "float32",
        "prompt": "Once",
        "prompt_token_ids": [7],
        "prompt_texts": ["Once"],
        "seed": 2**64 - 1,
        "n": 1,
        "chain": [{"name": name, "origin": "nvg 0", "options": {"k": 4}} for name in stages],
        **fields,
    }


def token(index, texts, stages=("topk", "topp"), choice=0, drawn=0):
    """A token whose candidates have these texts, the later the less probable; the last stage leaves half of them."""
    rng = random.Random(index)
    probs = [0.5**rank * rng.uniform(0.5, 1) for rank in range(len(texts))]
    keep = max(1, len(texts) // 2)
    cut = [*[1] * (len(stages)), None]
    points = [
        {"candidates": 50257 if stage < len(stages) else keep, "entropy": 4 * math.exp(-stage), "rank": drawn + 1}
        for stage in range(len(stages) + 1)
    ]
    points = [{**point, "prob": probs[drawn]} for point in points]
    return {
        "type": "token",
        "choice": choice,
        "index": index,
        "token_id": drawn,
        "text": texts[drawn],
        "model": points[0],
        "stages": [
            {"name": name, "removed": 0.125, "rank_before": drawn + 1, "prob_before": probs[drawn], **point}
            for name, point in zip(stages, points[1:], strict=True)
        ],
        "candidates": [
            [i, text, [p if i < keep else p and cut[s] and p for s, p in enumerate([probs[i]] * (len(stages) + 1))]]
            for i, text in enumerate(texts)
        ],
    }


def end(choice=0, finish_reason="length", error=None):
    return {"type": "end", "choice": choice, "finish_reason": finish_reason, "error": error}


def branch(index, token_id, text, texts, choice=0):
    continuation = [[100 + number, one, 0.25] for number, one in enumerate(texts)]
    return {
        "type": "branch",
        "choice": choice,
        "index": index,
        "token_id": token_id,
        "text": text,
        "continuation": continuation,
    }


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
