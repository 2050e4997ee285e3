"""Tools by a base model's own chat template: what is learnt, that it is what a server renders, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaduo.cli.main import call
from llamaduo.datasets import Message, Row
from llamaduo.migrations.spec_file import parse_spec
from llamaduo.tool_calls import ToolCall, read_answer
from llamaduo.tools_by_template import asked_with, may_render_tools, offered
from services.inference.answering import answer_of
from services.inference.engine import GenerationRequest
from services.inference.tool_requests import asked
from services.trainer.engine import TrainingImpossible
from services.trainer.rendering import tokenized
from tests.unit.test_base_models import _model as model_folder
from tests.unit.test_cli_submission import GOOD, write
from tests.unit.test_tools import CLOSE, FIND, calling, going_on

TURN = "<|im_start|>{{ message.role }}\n"
RENDERS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}<|im_end|>\n{% endif %}"
    f"{{% for message in messages %}}{TURN}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORES = f"{{% for message in messages %}}{TURN}{{{{ message.content }}}}<|im_end|>\n{{% endfor %}}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNREADABLE = RENDERS.replace('{"name": "{{ call.function.name }}", "arguments": ', "{{ call.function.name }}: ")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def byte_tokenizer() -> Any:
    """One token a byte, and the marks of a turn."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({char: number for number, char in enumerate(alphabet)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


def learnt(tokenizer: Any, row: Row) -> tuple[str, str]:
    """Prompt and answer that this row teaches."""
    [made] = tokenized([row], tokenizer)
    begins = made["completion_mask"].index(1)
    assert set(made["completion_mask"][begins:]) == {1}
    return tokenizer.decode(made["input_ids"][:begins]), tokenizer.decode(made["input_ids"][begins:])


def test_the_models_own_wording_is_learnt_and_is_what_its_server_renders(tokenizer: Any) -> None:
    tokenizer.chat_template = RENDERS
    again = calling("where is A1")
    turns = [
        *again.messages,
        Message(role="tool", content="paid", tool_call_id="0"),
        Message(role="assistant", content="It is paid."),
    ]
    for row in (
        calling("where is A1", says="I look."),
        going_on("close A1"),
        again.model_copy(update={"messages": turns}),
    ):
        prompt, answer = learnt(tokenizer, row)
        messages, further = asked_with(row.prompt, row.tools, "template")
        assert further["tool_choice"] == "none"
        for message in messages:  # a server reads arguments as text, and renders them as objects
            for one in message.get("tool_calls") or ():
                one["function"]["arguments"] = json.loads(one["function"]["arguments"])
        served = tokenizer.apply_chat_template(
            messages, tools=further["tools"], tokenize=False, add_generation_prompt=True
        )
        assert served == prompt
        assert answer_of(row, answer.removesuffix("<|im_end|>\n")) == row.answer
    assert "<tool_call>" in learnt(tokenizer, calling("where is A1"))[1]


def test_calls_of_different_tools_keep_their_own_arguments(tokenizer: Any) -> None:
    tokenizer.chat_template = RENDERS
    rows = [calling("where is A1"), going_on("close A1")]
    for row, made in zip(rows, tokenized(rows, tokenizer), strict=True):
        text = tokenizer.decode(made["input_ids"])
        assert "null" not in text
        assert text.count("<tool_call>") == sum(len(message.tool_calls or ()) for message in row.messages)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (IGNORES, "does not render tools: leave tool_wording out"),
        (UNREADABLE, "writes calls in a way that is not read"),
        (
            RENDERS.replace("{% if tools %}", "{{ raise_exception('no system') }}{% if tools %}"),
            "cannot render a row",
        ),
    ],
)
def test_a_template_of_no_use_is_said_before_training(tokenizer: Any, template: str, says: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TrainingImpossible, match=says):
        tokenized([calling("where is A1")], tokenizer)


def test_a_template_without_tools_is_refused_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    base = model_folder(tmp_path / "base")
    spec = write(
        tmp_path, GOOD.replace("base_model: owner/model", f"base_model: {base}") + "tool_wording: template\n"
    )
    assert f"base_model: {base}" in spec.read_text()
    template = base / "chat_template.jinja"
    template.write_text(IGNORES)
    assert call(["migrate", str(spec), "--check"]) == 0
    with (tmp_path / "tickets.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "p", "response": "r", "tools": [FIND]}) + "\n")
    capsys.readouterr()
    assert call(["migrate", str(spec), "--check"]) == 2
    assert f"tool_wording: the chat template of {base} does not render tools" in capsys.readouterr().err
    template.write_text(RENDERS)
    assert call(["migrate", str(spec), "--check"]) == 0
    assert may_render_tools(RENDERS) and not may_render_tools(IGNORES)


def test_what_a_server_would_change_of_a_tool_is_settled_before() -> None:
    strict = {"type": "function", "extra": 1, "function": {"strict": True, **FIND["function"]}}
    assert [list(tool["function"]) for tool in offered([strict, CLOSE]) or ()] == [
        ["name", "description", "parameters"]
    ] * 2
    assert (offered([CLOSE]) or [{}])[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert offered(None) is None and offered([]) is None
    schema = FIND["function"]["parameters"]
    turned = {"type": "function", "function": {**FIND["function"], "parameters": dict(reversed(schema.items()))}}
    assert json.dumps(offered([turned])) == json.dumps(offered([FIND]))


def test_requests_of_others_are_asked_in_the_wording_of_the_adapter() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "tools": [FIND], "stream": True}
    sent = asked(body, "template")
    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "tools": offered([FIND]),
        "tool_choice": "none",
    }
    assert "tools" not in asked(body, "text")
    asked_for = asked_with([Message(role="user", content="q")], [FIND], "template")[1]
    assert GenerationRequest("r", [], None, 1, 1, 0.0, [1], options=asked_for).options == asked_for


def test_a_spec_that_does_without_is_written_as_before() -> None:
    plain = parse_spec(GOOD, "migration.yaml").spec
    assert plain.tool_wording == "text" and "tool_wording" not in plain.model_dump(mode="json")
    other = plain.model_copy(update={"tool_wording": "template"})
    assert other.model_dump(mode="json")["tool_wording"] == "template"
    assert read_answer('{"name":"f","parameters":{}}').calls == (ToolCall("f", {}),)
