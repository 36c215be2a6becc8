"""Hugging Face folders: config.json and safetensors, read into ours and written from ours.

    family.py      what a family of models declares, and which family fits a model
    keys.py        the language of its config: one of their keys, one of our fields, both directions
    rope.py layers.py    the keys that say how positions are turned, and what each layer is
    weights.py     the language of its weights: which tensors are which, and how they are laid out
    parts.py       attention and feed-forwards, which most families share
    gpt2.py llama.py qwen.py gemma.py …    the families
    folder.py      safetensors files, sharded or not
    convert.py     a folder to a folder, either way

A family is one declaration that is read in both directions, so what was imported is exported again bit for bit.
"""
