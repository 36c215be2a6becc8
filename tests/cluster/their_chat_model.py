"""A small model made by `transformers`, with the chat template of a family of the hub: random weights, real files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.cluster.data.tokenizer.their_templates import CHATML, GEMMA, LLAMA3, MISTRAL, TEMPLATES
from tests.cluster.tiny_model import TEXT

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 256, "tie_word_embeddings": False}  # fmt: skip
FAMILIES = {"ChatML": "Qwen2", "Llama 3": "Llama", "Mistral": "Mistral", "Gemma": "Gemma"}
# The same templates with {% generation %} around what assistants say, for transformers' own assistant mask
MARKED = {
    "ChatML": CHATML.replace(
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}"
        "{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}",
    ),
    "Llama 3": LLAMA3.replace(
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + "
        "'<|eot_id|>' }}",
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{%- if message['role'] == 'assistant' %}{% generation %}"
        "{{- message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
        "{%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}",
    ),
    "Mistral": MISTRAL.replace(
        '{{- " " + message["content"]|trim + eos_token }}',
        '{% generation %}{{- " " + message["content"]|trim + eos_token }}{% endgeneration %}',
    ),
    "Gemma": GEMMA.replace(
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
        "{{ '<start_of_turn>' + role + '\n' }}{% if role == 'model' %}{% generation %}"
        "{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endif %}",
    ),
}


def make_chat_model(folder: Path, name: str = "ChatML", seed: int = 0) -> Path:
    """Write a Hugging Face folder: the family's architecture, a byte-level tokenizer, the family's template."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    template, special, end, _ = TEMPLATES[name]
    trained = ByteLevelBPETokenizer()
    names = list(dict.fromkeys(["<s>", "</s>", *special]))
    trained.train_from_iterator(TEXT, vocab_size=320, special_tokens=names)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>",
        additional_special_tokens=list(special),
    )  # fmt: skip
    fast.chat_template = template
    ids = {"bos_token_id": 0, "eos_token_id": [1, names.index(end)], "pad_token_id": None}
    torch.manual_seed(seed)
    more = {"head_dim": 16} if name == "Gemma" else {}
    config = getattr(transformers, f"{FAMILIES[name]}Config")(vocab_size=384, **SIZES, **ids, **more)
    getattr(transformers, f"{FAMILIES[name]}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_chats(path: Path, count: int = 12) -> list[list[dict[str, str]]]:
    """Conversations of one and two turns."""
    said = []
    for i in range(count):
        turns = [("What is two plus three?", f"Two plus {i} is five."), ("And the fox?", f" It jumps {i} times.\n")]
        said.append(
            [
                {"role": role, "content": text}
                for turn in turns[: 1 + i % 2]
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
        )
    lines = [json.dumps({"messages": messages}) for messages in said]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said
