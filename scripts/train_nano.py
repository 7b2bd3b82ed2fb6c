"""Train the nano model from nothing, on generated conversations only.

    python scripts/train_nano.py                         the whole recipe, 80 minutes at 6,000 tokens a second
    python scripts/train_nano.py --resume                go on from the newest checkpoint of --run_dir
    python scripts/train_nano.py --total_tokens 2000000  a short rehearsal of all phases

The order of teaching decides everything: copying alone first, then look-ups, then questions on a context block, then
everything mixed. The same tokens mixed from the start teach nothing. The last line of stdout is one line of JSON.
"""

import argparse
import copy
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nano_data
import torch
from nano_tokenizer import NANO, build_tokenizer, teach_full_width

DEFAULT_SYSTEM = "You are a helpful assistant."

# --- model ------------------------------------------------------------------------------------------------------


def causal_attention(module, query, key, value, attention_mask, scaling: float, **unused):
    """Attention as two matrix products. On a CPU in bf16 it is 2.5 to 7 times faster, backward included, than the fused
    kernel for sequences of a few hundred tokens and heads of 32 dimensions. query [B, H, T, D] -> [B, T, H, D]."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    scores = (query * scaling).reshape(batch, groups, -1, width) @ key.transpose(2, 3)
    future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu_(1)
    weights = torch.softmax(scores.view(batch, groups, -1, length, length) + future, dim=-1, dtype=query.dtype)
    mixed = weights.view(batch, groups, -1, length) @ value
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def new_model(tokenizer):
    """6.0 M parameters, a quarter of them embeddings (tied)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    ALL_ATTENTION_FUNCTIONS.register("nano_training", causal_attention)
    config._attn_implementation = "nano_training"
    model = Qwen2ForCausalLM(config)
    model.generation_config.update(eos_token_id=end, pad_token_id=pad, do_sample=False)
    return model


def save(model, weights: dict[str, torch.Tensor], tokenizer, directory: Path) -> None:
    """A plain transformers directory in bf16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rounded = Qwen2ForCausalLM(Qwen2Config.from_dict(model.config.to_dict())).to(torch.bfloat16)
    rounded.load_state_dict(weights)
    rounded.generation_config = model.generation_config
    tokenizer = copy.deepcopy(tokenizer)
    teach_full_width(rounded, tokenizer)
    rounded.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "Qwen2Tokenizer"  # what AutoTokenizer takes for this architecture in any case
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "model.safetensors").chmod(0o644)


# --- batches -----------------------------------------------------------------------------------------------------


class Encoder:
    """Conversation -> (ids, target mask), the same ids as the chat template gives."""

    def __init__(self, tokenizer):
        self.raw = tokenizer.backend_tokenizer
        marks = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
        self.start, self.end, self.stop = (self.raw.token_to_id(mark) for mark in marks)
        self.roles = {role: self.raw.encode(f"{role}\n").ids for role in ("system", "user", "assistant")}
        self.roles["prefilled"] = self.roles["assistant"]
        self.newline = self.raw.encode("\n").ids

    def __call__(self, turns: nano_data.Turns) -> tuple[list[int], list[bool]]:
        if turns[0][0] == "raw":
            ids = self.raw.encode(turns[0][1]).ids + [self.stop]
            return ids, [True] * len(ids)
        if turns[0][0] != "system":
            turns = [("system", DEFAULT_SYSTEM), *turns]
        ids: list[int] = []
        targets: list[bool] = []
        begun = False  # the head of an assistant turn is written, "prefilled" text stands behind it
        for (role, _), text in zip(turns, self.raw.encode_batch([text for _, text in turns]), strict=True):
            head = [] if begun else [self.start, *self.roles[role]]
            begun = role == "prefilled"
            tail, after = ([], []) if begun else ([self.end], self.newline)
            ids += [*head, *text.ids, *tail, *after]
            targets += [False] * len(head) + [role == "assistant"] * len(text.ids + tail) + [False] * len(after)
        return ids, targets


class Stream:
    """Endless batches of similar length from the mixture that is due; its place in the stream is its random state."""

    def __init__(self, encoder: Encoder, seed: int, batch_tokens: int, pool: int = 256, max_length: int = 1024):
        self.encoder, self.random = encoder, random.Random(seed)
        self.batch_tokens, self.pool, self.max_length = batch_tokens, pool, max_length

    def records(self, shares: dict[str, float]):
        names = list(shares)
        for ability in self.random.choices(names, weights=list(shares.values()), k=self.pool):
            language = self.random.choice(("zh", "en"))
            ids, targets = self.encoder(nano_data.conversation(self.random, ability, language))
            if len(ids) <= self.max_length:
                yield ability, ids, targets

    def batches(self, shares: dict[str, float]) -> list[list[tuple]]:
        """One pool of records, sorted by length, cut into batches of about `batch_tokens`, in random order."""
        batches: list[list[tuple]] = [[]]
        for record in sorted(self.records(shares), key=lambda record: len(record[1])):
            if (len(batches[-1]) + 1) * len(record[1]) > self.batch_tokens and batches[-1]:
                batches.append([])
            batches[-1].append(record)
        self.random.shuffle(batches)
        return batches


def tensors(batch: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """(ids [B, T], positions of predicting states [N], their labels [N], the ability of each of the N)."""
    width = (max(len(ids) for _, ids, _ in batch) + 15) // 16 * 16
    rows = torch.zeros(len(batch), width, dtype=torch.long)
    positions, abilities = [], []
    for row, (ability, ids, targets) in enumerate(batch):
        rows[row, : len(ids)] = torch.tensor(ids)
        found = [row * width + i - 1 for i in range(1, len(ids)) if targets[i]]
        positions += found
        abilities += [ability] * len(found)
    where = torch.tensor(positions)
    return rows, where, rows.flatten()[where + 1], abilities


# --- learning ----------------------------------------------------------------------------------------------------


def optimizers(model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms (arXiv 2502.16982)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    halves = [
        torch.optim.Muon(part, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        for part in (matrices[::2], matrices[1::2])
    ]
    # With a short memory (0.95) Adam makes full steps out of nothing for tokens that are rarely seen: they drift, and
    # names that hold them are copied wrong.
    return [*halves, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True)]


def schedule(progress: float, warmup: float = 0.005, high_until: float = 0.2, decay_from: float = 0.3) -> float:
    """Factor on the learning rate: up to 2 while copying is learned, then 1, then linearly down to 0.02."""
    if progress < high_until:
        return 2 * min(1.0, progress / warmup + 0.01)
    return max(0.02, min(1.0, (1 - progress) / (1 - decay_from)))


def shares_at(progress: float) -> dict[str, float]:
    return next(shares for until, shares in nano_data.CURRICULUM if progress <= until)


def token_losses(model, rows, where, labels, bf16: bool) -> torch.Tensor:
    """Cross-entropy of each target; logits are computed only where there is one."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state.flatten(0, 1)[where]
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


class Progress:
    """Running loss per ability, and a line for people every few seconds."""

    def __init__(self, total_tokens: int, seen_tokens: int):
        self.total, self.began_at, self.began = total_tokens, seen_tokens, time.monotonic()
        self.sums: dict[str, list[float]] = {}

    def add(self, losses: torch.Tensor, abilities: list[str]) -> None:
        for ability, loss in zip(abilities, losses.tolist(), strict=True):
            entry = self.sums.setdefault(ability, [0.0, 0])
            entry[0] += loss
            entry[1] += 1

    def line(self, step: int, seen: int, rate: float) -> str:
        speed = (seen - self.began_at) / (time.monotonic() - self.began)
        losses = " ".join(f"{ability} {total / count:.3f}" for ability, (total, count) in sorted(self.sums.items()))
        self.sums = {}
        return (
            f"{time.strftime('%H:%M:%S')} step {step} tokens {seen / 1e6:.2f}M/{self.total / 1e6:.0f}M "
            f"{speed:.0f} tok/s ETA {(self.total - seen) / speed / 60:.0f} min lr {rate:.2e} | {losses}"
        )


class Trainer:
    def __init__(self, args: argparse.Namespace):
        self.args, self.run_dir = args, Path(args.run_dir)
        torch.manual_seed(args.seed)
        self.tokenizer = build_tokenizer()
        self.model = new_model(self.tokenizer)
        if args.init_from:
            self.go_on_from(Path(args.init_from))
        self.average = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.optimizers = optimizers(self.model, args.learning_rate)
        self.stream = Stream(Encoder(self.tokenizer), args.seed, args.batch_tokens)
        self.step, self.seen_tokens = 0, args.seen_tokens
        self.threads = ThreadPoolExecutor(args.num_threads)
        torch.set_num_threads(1)
        self.bf16 = args.dtype == "bfloat16" or args.dtype == "auto" and bf16_is_faster()
        if args.resume:
            self.restore()

    def go_on_from(self, directory: Path) -> None:
        """Begin with the weights of a finished model; its full-width tokens are made again by `save`."""
        from safetensors.torch import load_file

        weights = load_file(directory / "model.safetensors")
        embeddings = "model.embed_tokens.weight"
        weights[embeddings] = weights[embeddings][: len(self.tokenizer)]
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            sys.exit(f"--init_from wants a model of this script, {directory} has other weights; leave it out to begin")

    @property
    def progress(self) -> float:
        return self.seen_tokens / self.args.total_tokens

    def groups(self):
        """Endless groups of batches: one optimizer step each."""
        pending: list[list[tuple]] = []
        while True:
            while len(pending) < self.args.batches_per_step:
                pending += self.stream.batches(shares_at(self.progress))
            group, pending = pending[: self.args.batches_per_step], pending[self.args.batches_per_step :]
            yield [tensors(batch) for batch in group]

    def gradients(self, batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        rows, where, labels, _ = batch
        losses = token_losses(self.model, rows, where, labels, self.bf16)
        return losses.detach(), torch.autograd.grad(losses.sum(), list(self.model.parameters()))

    def update(self, group, log: Progress) -> float:
        """One step. Each thread takes whole batches and the sums are taken in order: the result does not depend on
        which was faster, and on a busy machine nobody waits inside an operation for the slower core."""
        rate = self.args.learning_rate * schedule(self.progress)
        num_targets = sum(len(labels) for _, _, labels, _ in group)
        results = self.threads.map(self.gradients, group)
        for (rows, _, _, abilities), (losses, gradients) in zip(group, results, strict=True):
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            log.add(losses, abilities)
            self.seen_tokens += rows.numel()
        for parameter in self.model.parameters():
            parameter.grad /= num_targets
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, factor in zip(self.optimizers, (1.0, 1.0, 0.5), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        list(self.threads.map(lambda optimizer: optimizer.step(), self.optimizers))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        for name, weights in self.model.state_dict().items():
            self.average[name].lerp_(weights, max(0.005, 1 / self.step))
        return rate

    def run(self) -> None:
        log = Progress(self.args.total_tokens, self.seen_tokens)
        saved = time.monotonic()
        for group in self.groups() if self.progress < 1 else ():
            rate = self.update(group, log)
            if self.step % self.args.logging_steps == 0:
                print(log.line(self.step, self.seen_tokens, rate), flush=True)
            if time.monotonic() - saved > self.args.save_seconds:
                self.checkpoint()
                saved = time.monotonic()
            if self.progress >= 1:
                return self.checkpoint()

    def checkpoint(self) -> None:
        """Weights as a model directory, and beside them what going on needs."""
        save(self.model, self.average, self.tokenizer, self.run_dir / "model")
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seen_tokens": self.seen_tokens,
            "random": self.stream.random.getstate(),
        }
        torch.save(state, self.run_dir / "state.tmp")
        (self.run_dir / "state.tmp").rename(self.run_dir / "state.pt")

    def restore(self) -> None:
        path = self.run_dir / "state.pt"
        if not path.exists():
            sys.exit(f"--resume wants a checkpoint, there is none at {path}; leave --resume out to begin")
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
        self.average = state["average"]
        self.step, self.seen_tokens = state["step"], state["seen_tokens"]
        self.stream.random.setstate(state["random"])


def bf16_is_faster(size: int = 512, repeats: int = 20) -> bool:
    """Measured, because processors differ by a factor of ten in either direction."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.randn(size, size, dtype=dtype)
        a @ a
        began = time.perf_counter()
        for _ in range(repeats):
            a @ a
        return time.perf_counter() - began

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default=str(NANO), help="where the finished model goes")
    parser.add_argument("--run_dir", default="outputs/nano", help="checkpoints; --resume reads them")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init_from", default="", help="begin with the weights of this model directory")
    parser.add_argument("--seen_tokens", type=int, default=0, help="how many tokens those weights have seen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total_tokens", type=int, default=27_200_000)
    parser.add_argument("--batch_tokens", type=int, default=1024, help="padded tokens in one forward pass")
    parser.add_argument("--batches_per_step", type=int, default=6)
    parser.add_argument("--learning_rate", type=float, default=1.4e-3)
    parser.add_argument("--num_threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--logging_steps", type=int, default=50)
    parser.add_argument("--save_seconds", type=float, default=180)
    return parser.parse_args()


def main() -> None:
    from transformers.utils import logging

    args = arguments()
    logging.disable_progress_bar()
    trainer = Trainer(args)
    Path(args.run_dir).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    trainer.run()
    save(trainer.model, trainer.average, trainer.tokenizer, Path(args.output_dir))
    print(
        json.dumps(
            {
                "output_dir": args.output_dir,
                "steps": trainer.step,
                "tokens": trainer.seen_tokens,
                "seconds": round(time.monotonic() - began),
            }
        )
    )


if __name__ == "__main__":
    main()
