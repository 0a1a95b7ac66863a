"""Models of the Hugging Face hub: found in the cache without network, downloaded from a hub on this machine."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.workbench.checkpoint.sources.hub_server import COMMIT, HubServer, serve
from workbench.checkpoint import convert, load_model
from workbench.checkpoint.sources import hub
from workbench.checkpoint.sources.fetch import fetch, fetch_if
from workbench.checkpoint.sources.hub import HubName, needed_files
from workbench.checkpoint.sources.names import DEMO, resolve
from workbench.errors import CheckpointError

REPO = "some-org/Small-Llama"
TOKENS = torch.tensor([[1, 5, 9, 2]])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a repository of the hub, with files that nobody needs."""
    folder = convert(DEMO, tmp_path_factory.mktemp("hub") / "repository", layout="hf", shards=2)
    for unneeded in (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "README.md",
        "onnx/model.onnx",
        "runs/x.json",
    ):
        (folder / unneeded).parent.mkdir(exist_ok=True)
        (folder / unneeded).write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def server(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that the library uses instead of the public one, with a cache of its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for token in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(token, raising=False)
    with serve(repository, REPO) as running:
        use("ENDPOINT", running.url, monkeypatch)
        use("HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}", monkeypatch)
        use("HF_HUB_CACHE", str(tmp_path / "cache"), monkeypatch)
        use("HF_TOKEN_PATH", str(tmp_path / "token"), monkeypatch)
        use("HF_HUB_OFFLINE", False, monkeypatch)
        use("DOWNLOAD_CHUNK_SIZE", 1 << 16, monkeypatch)
        yield running


def use(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a constant of the library, which reads the environment once."""
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


def complaint(name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        fetch(name)
    message = str(error.value)
    assert len(message) < 600 and "\n" not in message
    return message


# Names


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", None),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("a/b_c.d@v1.0", "a/b_c.d", "v1.0"),
    ],
)  # fmt: skip
def test_names_of_the_hub(text: str, repo: str, revision: str | None) -> None:
    name = HubName.parse(text)
    assert name == HubName(repo, revision) and str(name) == text


@pytest.mark.parametrize(
    "text",
    ["demo", "a", "a/b/c", "/a/b", "../a", "a/..", "./a", "~/a", "a/b@", "a/b@../c", "a--b/c", "a/.b", "a b/c",
     "a/b.git", "http://a/b", "a/b?x", "ä/b", "a/b\n", "", "a" * 60 + "/" + "b" * 60],
)  # fmt: skip
def test_what_is_no_name_is_sent_nowhere(text: str, server: HubServer) -> None:
    assert HubName.parse(text) is None
    assert "cannot be fetched; expected smollm2" in complaint(text)
    fetch_if(True, text)
    assert server.requests == []


# Which files


def test_files_of_published_repositories() -> None:
    tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    common = ["config.json", "generation_config.json", *tokenizer]
    original = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"]

    llama = [*common, "LICENSE", "USE_POLICY.md", *shards, "model.safetensors.index.json"]
    assert needed_files([*llama, *original, ".gitattributes", "README.md"]) == sorted(llama)

    vicuna = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
              "pytorch_model.bin.index.json", "tokenizer.model"]  # fmt: skip
    assert needed_files([*vicuna, "README.md", ".gitattributes"]) == sorted(vicuna)

    smollm = [*common, "model.safetensors", "chat_template.jinja", "merges.txt", "vocab.json"]
    needed = {*smollm} - {"merges.txt"}
    assert needed_files([*smollm, "onnx/model.onnx", "onnx/config.json", "runs/events.1"]) == sorted(needed)

    assert needed_files([*original, "README.md", "LICENSE.txt"]) == sorted([*original, "LICENSE.txt"])
    meta = ["params.json", "tokenizer.model", "consolidated.00.pth", "consolidated.01.pth"]
    assert needed_files(meta) == sorted(meta)
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert needed_files([*adapter, "adapter_model.bin"]) == sorted(adapter)
    assert needed_files(["x.Q4_K_M.gguf", "README.md"]) == ["x.Q4_K_M.gguf"]


@pytest.mark.parametrize(("files", "message"), [
    (["README.md", "data.parquet"], "holds no weights"),
    (["a.Q4_0.gguf", "a.Q8_0.gguf"], "holds 2 GGUF files.*a.Q4_0.gguf"),
])  # fmt: skip
def test_a_repository_without_one_checkpoint(files: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        needed_files(files)


# Downloads


def test_a_download_that_breaks_off_goes_on_and_loads_offline(
    server: HubServer, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    large = "model-00001-of-00002.safetensors"
    server.break_off[large] = 1_000_000
    folder = fetch(REPO)
    firsts = [first for method, path, first in server.requests if method == "GET" and path.endswith(large)]
    assert len(firsts) == 2 and firsts[0] == 0 and 900_000 < firsts[1] <= 1_000_000
    assert server.downloaded() == {
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", large,
        "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    } & set(server.files())  # fmt: skip
    assert not any("torch" in agent for agent in server.agents)
    assert f"files of {REPO}" in capsys.readouterr().err
    assert folder == tmp_path / "cache" / "models--some-org--Small-Llama" / "snapshots" / COMMIT

    server.requests.clear()
    monkeypatch.setattr("socket.socket.connect", refuse_connections)
    model, expected = load_model(REPO), load_model(repository)
    assert torch.equal(model(TOKENS), expected(TOKENS))
    assert model.source is not None and model.source.name == "Small-Llama"
    for place in (folder, folder.parent.parent, f"{REPO}@main", f"{REPO}@{COMMIT}"):
        assert resolve(place) == folder
    assert server.requests == []


def refuse_connections(*_: object) -> None:
    raise AssertionError("a connection was opened")


def test_a_download_that_failed_goes_on_at_the_next_call(server: HubServer) -> None:
    large = "model-00001-of-00002.safetensors"
    server.break_off[large] = 700_000
    server.down = True
    assert "answered with status 503" in complaint(REPO)
    server.down = False
    server.break_off[large] = 700_000

    with pytest.raises(
        CheckpointError, match="no such model in the Hugging Face cache|The rest of it: `workbench fetch"
    ):
        load_model(REPO)
    assert load_model(fetch(REPO)).config.n_layers == load_model(DEMO).config.n_layers


def test_files_that_are_complete_are_not_downloaded_again(server: HubServer, tmp_path: Path) -> None:
    """A killed process leaves complete files, and the beginning of others under temporary names."""
    large = "model-00001-of-00002.safetensors"
    fetch(REPO)
    folder = tmp_path / "cache" / "models--some-org--Small-Llama"
    link = folder / "snapshots" / COMMIT / large
    blob = link.resolve()
    blob.rename(blob.with_name(f"{blob.name}.1a2b3c4d.incomplete"))
    link.unlink()
    with pytest.raises(CheckpointError, match="The rest of it: `workbench fetch some-org/Small-Llama`"):
        load_model(REPO)

    with pytest.raises(CheckpointError, match=f"`workbench fetch {REPO}@{COMMIT}`"):
        load_model(f"{REPO}@{COMMIT}")

    server.requests.clear()
    fetch(REPO)
    assert server.downloaded() == {large}
    assert link.read_bytes() == (server.folder / large).read_bytes()


@pytest.mark.slow
def test_the_command_with_the_public_settings(server: HubServer, tmp_path: Path) -> None:
    """In a process of its own, with the environment variables that the library's documentation names."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workbench", *arguments]
        return subprocess.run(command, env=env | changes, capture_output=True, text=True, timeout=100)

    done = run("generate", REPO, "one two", "--max-new-tokens", "2")
    assert done.returncode == 2 and f"`workbench fetch {REPO}`" in done.stderr and server.requests == []
    done = run("generate", REPO, "one two", "--max-new-tokens", "2", "--online")
    assert done.returncode == 0, done.stderr
    assert "downloading" in done.stderr
    assert (
        run("generate", REPO, "one two", "--max-new-tokens", "2", HF_ENDPOINT="http://127.0.0.1:9").stdout
        == done.stdout
    )


# What can go wrong


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "knows no such model, or it is private.*HF_TOKEN.*hf auth login"),
        (404, "RepoNotFound", "knows no such model"),
        (401, "", "knows no such model, or it is private"),
        (403, "GatedRepo", "Accept its licence.*HF_TOKEN.*hf auth login"),
        (401, "GatedRepo", "Accept its licence"),
        (403, "", "access is restricted"),
        (404, "RevisionNotFound", "no such branch, tag or commit"),
        (500, "", "answered with status 500"),
    ],
)
def test_refusals_of_the_hub(server: HubServer, status: int, code: str, message: str) -> None:
    server.refuse = status, code
    assert re.search(f"^{REPO} cannot be downloaded: .*{message}", complaint(REPO))


def test_an_unknown_revision(server: HubServer) -> None:
    assert "no such branch, tag or commit" in complaint(f"{REPO}@nowhere")


def test_no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use("ENDPOINT", "http://127.0.0.1:9", monkeypatch)
    assert "the connection to http://127.0.0.1:9 failed" in complaint(REPO)
    use("HF_HUB_OFFLINE", True, monkeypatch)
    assert "HF_HUB_OFFLINE is set" in complaint(REPO)


def test_a_full_disk(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        assert re.search(r"needs \d+\.\d MiB, but 1000 B are free.*HF_HOME", complaint(REPO))
    assert server.downloaded() == set()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "no space left in" in complaint(REPO)


def test_a_cache_that_is_not_writable(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", denied)
    assert "is not writable; set HF_HOME" in complaint(REPO)


def test_online_leaves_paths_alone(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPO).mkdir(parents=True)
    fetch_if(True, REPO, "demo", str(tmp_path))
    fetch_if(False, "other/model")
    assert server.requests == []
    assert resolve(REPO) == Path(REPO)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a" * 300 + "/b", "a\0b", "no/such/folder"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory") as error:
        load_model(name)
    assert len(str(error.value)) < 300


# Folders of a cache given as paths


def test_folders_of_a_cache(tmp_path: Path, repository: Path) -> None:
    model = tmp_path / "models--a--b"
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(repository, model / "snapshots" / commit, copy_function=os.link)
    with pytest.raises(CheckpointError, match="holds 2 snapshots and no branch main"):
        resolve(model)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("2" * 40)
    assert resolve(model) == model / "snapshots" / ("2" * 40)
    with pytest.raises(CheckpointError, match="a cache of one model; pass a name, for example a/b"):
        resolve(tmp_path)
    shutil.rmtree(model / "snapshots" / ("2" * 40))
    assert resolve(model) == model / "snapshots" / ("1" * 40)


def test_weights_only_in_the_folder_original(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "models--a--b" / "snapshots" / COMMIT / "original")
    assert torch.equal(load_model(tmp_path / "models--a--b")(TOKENS), load_model(DEMO)(TOKENS))


def test_a_cache_made_by_the_library_alone(server: HubServer) -> None:
    """As transformers fills it: file by file, without a list of the repository's files."""
    from huggingface_hub import hf_hub_download

    assert hub.cached(HubName(REPO)) is None
    for name in needed_files(server.files()):
        hf_hub_download(REPO, name)
    assert hub.cached(HubName(REPO)) is not None
    assert torch.equal(load_model(REPO)(TOKENS), load_model(DEMO)(TOKENS))
