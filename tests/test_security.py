"""What SECURITY.md promises: nothing that is read is run, ids stay in their folder, terminals obey nothing, secrets are not kept."""

import ast
import io
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from fake_endpoint import served
from hostile import QUESTION, TEACHER, TEXT, WORDS, hostile_run, is_clean
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file, save_file
from test_cli import TINY

from gradalign import load_run
from gradalign.builtin import builtin_path
from gradalign.contexts import parse_teacher
from gradalign.deadline import templates_end
from gradalign.models import LoadOptions, load_model, resolve_model
from gradalign.pipeline import Execution, RunConfig
from gradalign.store.places import place_of
from gradalign.types import GradalignError

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "gradalign").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
UNPICKLERS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    ("torch", "load"),
    ("np", "load"),
    ("numpy", "load"),
    ("pd", "read_pickle"),
    ("os", "system"),
    ("os", "popen"),
    *(("yaml", name) for name in ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all")),
}


def forbidden(source: str) -> list[str]:
    """What in a module would run or unpickle what it reads, or might run a model's own code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).partition(".")[0] in UNPICKLERS else []
        elif isinstance(node, ast.Call):
            found += _calls(node)
    return found


def _calls(node: ast.Call) -> list[str]:
    function, keywords = node.func, {keyword.arg: keyword.value for keyword in node.keywords}
    found = []
    if isinstance(function, ast.Name) and function.id in RUNNERS:
        found.append(function.id)
    if isinstance(function, ast.Attribute):
        if isinstance(function.value, ast.Name) and (function.value.id, function.attr) in LOADERS:
            found.append(f"{function.value.id}.{function.attr}")
        reads_json = isinstance(function.value, ast.Attribute) and function.value.attr == "PeftConfig"
        if function.attr == "from_pretrained" and not reads_json and not {"trust_remote_code", None} & {*keywords}:
            found.append("from_pretrained without trust_remote_code")
    trust = keywords.get("trust_remote_code")
    if isinstance(trust, ast.Constant) and trust.value is not False:
        found.append("trust_remote_code")
    if "shell" in keywords or "allow_pickle" in keywords:
        found.append("shell or allow_pickle")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_package_runs_what_it_reads(path):
    assert forbidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "torch.load(f)",
        "yaml.load(t)",
        "np.load(f, allow_pickle=True)",
        "A.from_pretrained(n)",
        "A.from_pretrained(n, trust_remote_code=True)",
        "run(c, shell=True)",
    ],
)
def test_what_would_run_it_is_found(source):
    assert forbidden(source)


def test_weights_that_are_pickles_are_refused(tmp_path):
    folder = Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(GradalignError, match="no weights in safetensors"):
        load_model(str(folder), LoadOptions(device="cpu"))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "coded"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nclass C: pass\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C", "AutoTokenizer": ["own.C", None]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}), encoding="utf-8")
    with pytest.raises(GradalignError, match="--trust-remote-code runs it"):
        load_model(str(folder), LoadOptions(device="cpu"))
    assert not (tmp_path / "owned").exists()


def test_what_transformers_says_of_a_file_is_shown_as_text(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(builtin_path("students") / "small", tmp_path / "named"))
    tensors = load_file(folder / "model.safetensors") | {name: torch.zeros(1) for name in ("\x1bc", "x\x9b2J", "\x1b[31mred")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    handler, said = logging.getLogger("transformers").handlers[0], io.StringIO()
    monkeypatch.setattr(handler, "stream", said)
    load_model(str(folder), LoadOptions(device="cpu"))
    assert "\ufffdc" in said.getvalue()
    assert is_clean(said.getvalue())


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ lipsum(n=1000000000) }}",
        "{{ [1, 2]|slice(1000000000)|list }}",  # computed as the template is compiled, where Jinja drops what is raised
        "{{ range(99999)|map('string')|map('center', 4000)|map('wordwrap', 2)|list }}",
    ],
)
def test_templates_end(source):
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"), templates_end(0.05):
        ImmutableSandboxedEnvironment().from_string(source).render()


IDS = (
    "../../escape",
    "/tmp/escape",
    "a\u0000b",
    "x" * 256,
    "..",
    "part-00000",
    "~/escape",
    "C:\\escape",
    "a/b/c",
    "\x1b[2J\u202e",
)


def test_ids_of_questions_stay_in_the_run_folder(gradalign, tmp_path):
    first = (builtin_path("questions") / "arithmetic" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) | {"id": name} for name, line in zip(IDS, first, strict=False)]
    place = tmp_path / "inside"
    place.mkdir()
    (place / "q.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    code, out, err = gradalign("score", "inside/q.jsonl", *TINY[2:], "--out", "inside/r", "--report")
    assert code == 0, err
    assert is_clean(out)
    assert {*load_run(place / "r").questions.question} == {*IDS}
    assert {path.name for path in tmp_path.iterdir()} == {"inside"}
    assert {path.name for path in place.iterdir()} == {"q.jsonl", "r"}
    assert not list(Path("/tmp").glob("escape*"))
    for path in (place / "r").rglob("*"):
        assert not any(name in str(path.relative_to(place)) for name in ("escape", "xxx", "\x1b")), path
    for name in IDS:
        code, out, err = gradalign("show", "inside/r", "--question", name)
        assert code in (0, 2)
        assert is_clean(out + err)


CONFIG = f"- {{name: {json.dumps(WORDS[3] + 'n')}, teacher: {json.dumps(TEACHER)}, objective: reverse_kl}}\n"
COMMANDS = {
    "score": ["q.jsonl", *TINY[2:], "--out", "mine"],
    "contexts": ["q.jsonl", *TINY[2:-2], "--teacher-rollouts", "2", "--teacher", "ctx:reference", "--out", "screened"],
    "rank": ["r", "--configs", "c.yaml"],
    "foretell": ["r"],
    "paths": ["r", "--draws", "100"],
    "findings": ["r", "--draws", "100"],
    "pbsd": ["r"],
    "paced": ["r", "--draws", "50"],
    "report": ["r", "--draws", "100"],
    "show": ["r", "--question", QUESTION, "--rollout", "0"],
    "status": ["r"],
    "export": ["r", "--configs", "c.yaml", "--out", "out\x1b[2J"],
    "doctor": [],
}


def test_every_command_shows_hostile_text_as_text(gradalign, tabular, tmp_path):
    from gradalign_cli.main import app

    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names | {group.name for group in app.registered_groups} == {*COMMANDS}
    hostile_run(tabular, tmp_path / "r")
    log = next((tmp_path / "r" / "log").iterdir())
    events = [
        {"event": "warning", "message": WORDS[3], "seconds": 1},
        {"event": "set aside", "question": QUESTION, "reason": TEXT, "seconds": 1},
        {"event": "ended", "how": "failed", "message": WORDS[2], "seconds": 1},
    ]
    log.write_text(log.read_text() + "\n".join(map(json.dumps, events)), encoding="utf-8")
    first = json.loads((builtin_path("questions") / "arithmetic" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    records = [first | {"id": QUESTION, "question": TEXT + first["question"]}, first | {"id": "plain", "difficulty": WORDS[3]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    for command, arguments in COMMANDS.items():
        code, out, err = gradalign(command, *arguments)
        assert code in (0, 2), err
        assert is_clean(out + err), command
    description = json.loads((tmp_path / "r" / "run.json").read_text())
    description["provenance"]["notices"] = [WORDS[3]]
    (tmp_path / "r" / "run.json").write_text(json.dumps(description), encoding="utf-8")
    code, out, err = gradalign("rank", "r")
    assert is_clean(out + err)


SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "GRADALIGN_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def test_secrets_are_kept_nowhere(gradalign, tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"canary-{name}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    told = ""
    for arguments in (
        ["score", *TINY, "--out", "r", "--report"],
        ["status", "r"],
        ["doctor"],
        ["score", "--student", "nobody/nothing"],
        ["score", *TINY, "--engine", "server:http://127.0.0.1:9"],
        ["score", *TINY, "--engine", "server:http://user:canary-password@127.0.0.1:9"],
        ["score", *TINY, "--teacher", "server:http://127.0.0.1:9?key=canary-query"],
        ["score", *TINY, "--out", "s3://key:canary-bucket@bucket/run"],
    ):
        code, out, err = gradalign(*arguments)
        assert code in (0, 2)
        told += out + err
    assert "canary" not in told
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert kept == []


def test_a_file_of_somebody_elses_takes_no_key(gradalign, small, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADALIGN_API_KEY", "right-key")
    with served(small, key="right-key") as fake:
        (tmp_path / "c.yaml").write_text(f"- {{name: a, teacher: '{fake.name}', objective: reverse_kl}}\n", encoding="utf-8")
        code, _, err = gradalign("score", *TINY, "--configs", "c.yaml", "--out", "r")
    assert code == 2
    assert "gets none since only a file names it" in " ".join(err.split())


ADDRESSES = (
    "s3://key:hunter2@bucket/run",
    "memory://hunter2@x/y",
    "https://me:hunter2@host/run",
    "S3://KEY:hunter2@bucket/run",
    "filecache::s3://KEY:hunter2@bucket/run",
    "s3://bucket/run?X-Amz-Security-Token=hunter2",
    "https://me:hunter2@huggingface.co/o/m@main",
)
TAKERS = {
    "a run": place_of,
    "a model": resolve_model,
    "a student": lambda text: RunConfig(text, "builtin:arithmetic", ("ctx:answer",)),
    "a question set": lambda text: RunConfig("builtin:small", text, ("ctx:answer",)),
    "a teacher": lambda text: parse_teacher(f"model:{text}+ctx:answer"),
    "no teacher": parse_teacher,
    "a source": lambda text: parse_teacher(f"ctx:correct_demo@model:{text}"),
    "a cluster": lambda text: Execution(executor="ray", address=text),
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("thing", TAKERS)
def test_an_address_holds_no_secret(address, thing):
    with pytest.raises(GradalignError, match=r"may hold no user, password or query; give the key as [A-Z_]+") as caught:
        TAKERS[thing](address)
    assert "hunter2" not in str(caught.value)


def test_addresses_without_secrets_are_taken():
    assert str(place_of("memory://bucket/a@b")) == "memory://bucket/a@b"
    assert resolve_model("org/name@v1").revision == "v1"
    assert Execution(executor="ray", address="ray://head:10001").address == "ray://head:10001"
    with pytest.raises(GradalignError, match="cannot be reached"):  # and no folder of that name
        place_of("NOWHERE://bucket/run")
