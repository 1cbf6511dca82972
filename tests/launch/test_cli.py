"""The command `maverick`: exit codes, one message per error, JSON on stdout, and no heavy imports before they are
needed."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
from importlib import import_module

import jsonschema
import pytest

from launch import cli
from launch.cli import VERBS, main
from maverick_jax import errors
from maverick_jax.settings import strict_yaml
from maverick_jax.settings.strict_yaml import parse
from tests.helpers.small_run import PATIENCE

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def maverick(capsys):
    """`maverick("plan", "x")` -> (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def in_process(code: str, **keywords) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=PATIENCE, **keywords)


# ---- help and mistakes -----------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_every_verb_has_help(maverick):
    code, out, _ = maverick("--help")
    assert code == 0
    assert all(re.search(rf"^  {verb} ", out, re.MULTILINE) for verb in VERBS)
    for verb in VERBS:
        code, out, err = maverick(verb, "--help")
        assert (code, err) == (0, "")
        assert "--json" in out


def test_help_is_quick_and_imports_nothing_heavy():
    """Measures CPU seconds, because they do not depend on other processes of the machine."""
    code = (
        "import sys, time; from launch.cli import main; main(['--help']); main(['trian'])\n"
        "assert not {'jax', 'numpy', 'yaml', 'orbax', 'grain'} & set(sys.modules), 'heavy import'\n"
        "print('cpu', time.process_time())"
    )
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "no verb 'trian'; did you mean train?"),
        (["serve", "RUN", "--port", "99999"], "'99999'; expected a port, 0 to 65535"),
        (["serve", "bytes", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines reach this address; add --remote"),
        (["serve", "RUN", "--image-root", "NOWHERE"], "--image-root NOWHERE: no such folder"),
        (["serve", "RUN", "--name", "a b"], "--name 'a b'; expected letters"),
        (["launch", "slrum", "CONFIG"], "did you mean slurm?"),
        (["launch", "slurm", "pretrain_tny"], "no shipped run is named 'pretrain_tny'; did you mean pretrain_tiny?"),
        (["plan"], "required: CONFIG (see"),
        (["plan", "pretrain_tny"], "no shipped run is named 'pretrain_tny'; did you mean pretrain_tiny?"),
        (["plan", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["plan", "pretrain_tiny", "--jsn"], "did you mean --json?"),
        (["plan", "pretrain_tiny", "optimizer.learnin_rate=1"], "command line: optimizer.learnin_rate: unknown key"),
        (["plan", "pretrain_tiny", "word"], "command line: word: expected key=value"),
        (["config", "shwo"], "did you mean show?"),
        (["config", "show"], "CONFIG is missing"),
        (["data", "stat", "pretrain_tiny"], "did you mean stats?"),
        (["train", "pretrain_tiny", "run.steps=x"], "command line: run.steps: must be a valid integer"),
        (["generate", "somewhere"], "give either --prompt TEXT or --prompts FILE"),
        (["generate", "somewhere", "--prompt", "a", "--prompts", "b"], "give either --prompt TEXT or --prompts FILE"),
        (["generate", "somewhere", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["generate", "somewhere", "--prompt", "a", "--samples", "0"], "whole number of 1 or more"),
        (["generate", "somewhere", "--prompt", "a", "--top-p", "2"], "top_p: 2.0; expected more than 0"),
        (["eval", "somewhere"], "give a CONFIG"),
        (["generate", "somewhere", "--prompt", "x", "--max-new-tokens", "3"], "did you mean --max-tokens?"),
        (["generate", "somewhere", "--prompt", "x", "--temp", "3"], "did you mean --temperature?"),
    ],
)
def test_bad_arguments_are_one_message_and_exit_code_78(maverick, argv, said):
    code, out, err = maverick(*argv)
    assert (code, out) == (78, "")
    assert said in err
    assert "Traceback" not in err


def test_a_message_cannot_control_a_terminal():
    told = str(errors.InputError("a\tb\nc \x1b]0;x\x07 \x9b \u202e \ud800 é東"))
    assert told == "a\tb\nc \\x1b]0;x\\x07 \\x9b \\u202e \\ud800 é東"
    assert len(str(errors.InputError("x" * 10**6))) < 17_000


def test_every_outcome_has_its_exit_code(maverick, monkeypatch):
    """Each kind of error has its own exit code; any other exception shows a traceback."""
    codes = {e.__name__: e.exit_code for e in (*_subclasses(errors.MaverickError), errors.MaverickError)}
    assert {"InputError": 78, "CheckFailed": 1, "Preempted": 75, "PeerFailed": 76}.items() <= codes.items()
    for outcome in (errors.Preempted, errors.PeerFailed, errors.NonFiniteBudgetSpent, errors.NoRestorableCheckpoint):

        def fail(args, outcome=outcome):
            raise outcome("what happened")

        monkeypatch.setitem(cli.VERBS, "doctor", cli.Verb("", VERBS["doctor"].arguments, fail))
        assert maverick("doctor", "x") == (outcome.exit_code, "", "what happened\n")

    def bug(args):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "doctor", cli.Verb("", VERBS["doctor"].arguments, bug))
    with pytest.raises(ZeroDivisionError):
        main(["doctor", "x"])


def _subclasses(base: type) -> list[type]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, base) and c is not base]


def test_interruption_shows_no_traceback(maverick, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "doctor", cli.Verb("", VERBS["doctor"].arguments, interrupt))
    assert maverick("doctor", "x") == (130, "", "interrupted\n")


def test_ctrl_c_ends_a_process_of_its_own_without_freeing_what_was_interrupted():
    """Freeing a half-lowered program crashed with a segmentation fault."""
    code = (
        "import sys\nfrom launch import cli\n"
        "class Crash:\n"
        "    def __del__(self): print('freed', flush=True)\n"
        "def interrupt(args):\n    held = Crash()\n    raise KeyboardInterrupt\n"
        "cli.VERBS['doctor'] = cli.Verb('', cli.VERBS['doctor'].arguments, interrupt)\n"
        "sys.argv = ['maverick', 'doctor', 'x']\nsys.exit(cli.main())"
    )
    done = in_process(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_every_exit_code_is_in_the_help_and_the_documentation(maverick):
    codes = {str(e.exit_code) for e in _subclasses(errors.MaverickError)} | {str(errors.INTERRUPTED)}
    documented = (ROOT / "docs" / "reference" / "commands.md").read_text().partition("## Exit codes")[2]
    for text in (maverick("--help")[1].partition("exit codes:")[2], documented):
        assert codes <= set(re.findall(r"\d+", text))


@pytest.mark.parametrize(
    ("variables", "level"), [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0"), ({"MAVERICK_COORDINATOR": "a:1"}, None)]
)
def test_the_alarm_of_slow_compilations_is_left_out_unless_it_is_asked_for(variables, level, monkeypatch, maverick):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    monkeypatch.delenv("MAVERICK_COORDINATOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    maverick("--version")
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level
    os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)


CLOSED = {
    "plain text": ["config", "schema"],
    "the usage": ["--help"],
    "rows in color": ["data", "inspect", "SYNTHETIC", "--count", "40"],
    "JSON": ["data", "inspect", "SYNTHETIC", "--count", "40", "--json"],
}


@pytest.mark.parametrize("what", CLOSED)
def test_a_closed_output_ends_a_verb_like_other_programs(what, tmp_path):
    (tmp_path / "synthetic.yaml").write_text(
        "base: pretrain_tiny\n"
        f"data: {{sources: {{tinyshakespeare: null, s: {{kind: synthetic}}}}, cache_dir: '{tmp_path / 'cache'}'}}\n"
    )
    argv = [str(tmp_path / "synthetic.yaml") if word == "SYNTHETIC" else word for word in CLOSED[what]]
    code = f"import sys; from launch.cli import main; sys.exit(main({argv!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env, timeout=PATIENCE)
    os.close(writer)
    assert done.returncode == 141, done.stderr
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


def test_a_reader_that_has_seen_enough_ends_a_verb(tmp_path):
    """cases/pipe_head.sh: the first lines are read, then the pipe is closed."""
    argv = ["data", "inspect", "pretrain_tiny", "--count", "400", f"data.cache_dir={tmp_path}"]
    code = f"import sys; from launch.cli import main; sys.exit(main({argv!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, env=env) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 141
    assert b"Traceback" not in said


def test_the_code_of_an_error_counts_where_nobody_reads_its_message():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main(['trian']))"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=writer, stderr=writer, env=env, timeout=PATIENCE)
    os.close(writer)
    assert done.returncode == 78


# ---- output of the light verbs ---------------------------------------------------------------------------------------


def test_config_list(maverick):
    code, out, _ = maverick("config", "list", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"pretrain_tiny", "pretrain_maverick_h200x512"} <= set(found["runs"])
    assert {"tiny", "maverick_17b_128e", "scout_17b_16e", "behemoth_288b_16e"} <= set(found["models"])
    _, out, _ = maverick("config", "list")
    assert "pretrain_tiny" in out


def test_config_show_prints_a_valid_config(maverick, tmp_path):
    code, out, _ = maverick("config", "show", "pretrain_tiny", "run.steps=3", "optimizer.learning_rate=5e-4")
    assert code == 0
    shown = parse(out, "shown").data
    assert (shown["run"]["steps"], shown["optimizer"]["learning_rate"]) == (3, 5e-4)
    (tmp_path / "again.yaml").write_text(out)
    assert maverick("config", "show", str(tmp_path / "again.yaml"))[1] == out
    _, as_json, _ = maverick("config", "show", "--json", "pretrain_tiny", "run.steps=3", "optimizer.learning_rate=5e-4")
    assert json.loads(as_json) == shown


def test_config_schema(maverick):
    code, out, _ = maverick("config", "schema")
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))
    assert strict_yaml.parse("run: {name: x}", "x").problems == []


def test_plan_fits_or_fails(maverick):
    code, out, err = maverick("plan", "--json", "pretrain_maverick_h200x512")
    assert (code, err) == (0, "")
    assert json.loads(out)["parameters"]["total"] == 400_711_848_960
    code, out, err = maverick("plan", "pretrain_maverick_h200x512", "mesh.expert=8", "--json")
    assert code == 1
    assert json.loads(out)["fits"] is False
    assert "does not fit" in err
    code, out, _ = maverick("plan", "pretrain_tiny")
    assert code == 0
    assert "verdict            fits" in out


def test_the_console_script_calls_main():
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"maverick": "launch.cli:main"}


def _is_module(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()


def test_every_import_of_a_verb_exists():
    tree = ast.parse(pathlib.Path(cli.__file__).read_text())
    wanted = [(n.module, a.name) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    missing = [(m, name) for m, name in wanted if not (_is_module(f"{m}.{name}") or hasattr(import_module(m), name))]
    assert len(wanted) > 15
    assert missing == []
