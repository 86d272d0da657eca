"""Presses of kvpress on the pieces that `benchmark --evict_once` read: same weights, same tokens, as many kept.

    pip install kvpress gguf
    kvpress_once.py --results results --model MODEL.gguf [--sizes 128] [--presses snapkv,kvzip]

--results is the folder of evict_once.json and evict_once_pieces.json; --model the GGUF file that was run, of single
precision for an even comparison (benchmark --exact says where its copy is). Each press compresses the prefix once, and
the continuation is read with everything kept, at its own positions. Prints one table with headaware's rows and writes
evict_once_kvpress.json; what an earlier run measured of the same pieces and model is not measured again.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

PRESSES = {
    "streaming_llm": lambda ratio: kvpress.StreamingLLMPress(ratio),
    "knorm": lambda ratio: kvpress.KnormPress(ratio),
    "keydiff": lambda ratio: kvpress.KeyDiffPress(ratio),
    "tova": lambda ratio: kvpress.TOVAPress(ratio),
    "snapkv": lambda ratio: kvpress.SnapKVPress(ratio),
    "adakv_snapkv": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
    "expected_attention": lambda ratio: kvpress.ExpectedAttentionPress(ratio),
    "adakv_expected_attention": lambda ratio: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio)),
    "kvzip": lambda ratio: kvpress.KVzipPress(ratio),
}
TWICE = {"kvzip"}  # read the prefix a second time
STEP = 32  # tokens of a continuation at a time: what hides keys of single heads finds none for many queries at once


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sizes", default="128", help="tokens kept of a prefix, with commas")
    parser.add_argument("--presses", default=",".join(PRESSES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.sizes = [int(size) for size in options.sizes.split(",")]
    options.presses = options.presses.split(",")
    unknown = [name for name in options.presses if name not in PRESSES]
    if unknown:
        parser.error(f"--presses: expected some of {','.join(PRESSES)}, got {','.join(unknown)}")
    for name in ("evict_once.json", "evict_once_pieces.json"):
        if not (options.results / name).exists():
            parser.error(f"--results: no {name} in {options.results}; benchmark --evict_once writes it")
    return options


def load(path):
    """The model, and a folder with its tokenizer, which presses look for by the model's name."""
    where = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where).eval()
    folder = tempfile.TemporaryDirectory()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    tokenizer.chat_template = None  # as headaware reads the text: nothing around it
    tokenizer.save_pretrained(folder.name)
    model.config.save_pretrained(folder.name)
    model.config.name_or_path = folder.name
    return model, folder


@torch.no_grad()
def read(model, press, piece):
    """Mean loss of the predictions that count, or for lookups the share that are right."""
    cache = DynamicCache()
    prefix = torch.tensor([piece["prefix"]])
    with press(model):
        model.model(input_ids=prefix, past_key_values=cache)
    continuation = torch.tensor([piece["continuation"]])
    logits = []
    for begin in range(0, continuation.shape[1], STEP):
        tokens = continuation[:, begin : begin + STEP]
        first = prefix.shape[1] + begin
        positions = torch.arange(first, first + tokens.shape[1]).unsqueeze(0)
        logits.append(model(input_ids=tokens, past_key_values=cache, position_ids=positions).logits[0])
    logits = torch.cat(logits)
    at = torch.tensor(piece["counted"])
    next_tokens = continuation[0, at + 1]
    if piece["kind"] == "lookup":
        return (logits[at].argmax(-1) == next_tokens).float().mean().item()
    return torch.nn.functional.cross_entropy(logits[at], next_tokens).item()


def mean_and_error(values):
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values) if values else math.nan, error


def plus_minus(decimals, value, error):
    return f"{value:.{decimals}f}" + ("" if math.isnan(error) else f" ± {error:.{decimals}f}")


def row(name, size, by_kind):
    loss, loss_error = mean_and_error(by_kind["passage"])
    perplexity = math.exp(loss)
    cells = [
        plus_minus(2, perplexity, perplexity * loss_error),
        plus_minus(3, *mean_and_error(by_kind["copy"])),
        plus_minus(2, *mean_and_error(by_kind["lookup"])),
    ]
    return f"| {name} | {size or 'all'} | {' | '.join(cells)} |"


def main():
    options = arguments()
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    tokens = (options.results / "evict_once_pieces.json").read_bytes()
    pieces = json.loads(tokens)
    of = {"pieces": hashlib.sha256(tokens).hexdigest(), "model": options.model.name}
    ours = json.loads((options.results / "evict_once.json").read_text())
    output = options.results / "evict_once_kvpress.json"
    saved = json.loads(output.read_text()) if output.exists() else {}
    measured = saved["measured"] if saved.get("of") == of else {}
    model, folder = load(options.model)
    jobs = [(name, size) for size in options.sizes for name in options.presses]
    for done, (name, size) in enumerate(jobs):
        values = measured.setdefault(f"{name} {size}", [])
        for index, piece in enumerate(pieces):
            print(f"\r{name} {size}: {done + 1} of {len(jobs)}, piece {index + 1} of {len(pieces)}   ", end="", file=sys.stderr)
            if index < len(values):
                continue
            ratio = 1 - size / len(piece["prefix"])
            values.append(read(model, PRESSES[name](ratio), piece))
            partial = output.with_suffix(".partial")
            partial.write_text(json.dumps({"of": of, "measured": measured}))
            partial.replace(output)
    print(file=sys.stderr)
    print("| method | kept | perplexity | copy NLL | lookup |\n|---|---|---|---|---|")
    for run in ours["runs"]:
        if run["size"] in (0, *options.sizes):
            kinds = {"passage": run["passage_nll"], "copy": run["copy_nlls"], "lookup": run["lookups"]}
            print(row(f"headaware: {run['method']}", run["size"], kinds))
    for name, size in jobs:
        kinds = {"passage": [], "copy": [], "lookup": []}
        for piece, value in zip(pieces, measured[f"{name} {size}"]):
            kinds[piece["kind"]].append(value)
        print(row(f"kvpress: {name}" + (" (reads the prefix twice)" if name in TWICE else ""), size, kinds))
    folder.cleanup()


if __name__ == "__main__":
    main()
