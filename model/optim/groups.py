"""Which parameters an optimizer treats how, and the optimizers of a training run.

Weight decay is for matrices and an untied head; embeddings, norms, biases and other vectors have none (OLMo
2, arXiv 2501.00656, section 3.3). With "muon", hidden matrices go to Muon and all else to AdamW.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.train_config import TrainConfig
from model.decoder import Decoder
from model.optim.muon import Muon


def make_optimizers(model: Decoder, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and before it Muon if the config says so. Each group's `lr` is set by the trainer every step."""
    roles = model.parameter_roles()
    named = [(name, p, roles[name]) for name, p in model.named_parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        hidden = [(p, role.rows) for _, p, role in named if role.kind == "matrix"]
        named = [entry for entry in named if entry[2].kind != "matrix"]
        optimizers.append(Muon(hidden, lr=config.lr, weight_decay=config.weight_decay))
    decay: list[nn.Parameter] = [p for _, p, role in named if role.kind in ("matrix", "head")]
    plain: list[nn.Parameter] = [p for _, p, role in named if role.kind not in ("matrix", "head")]
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decay, config.weight_decay), (plain, 0.0))
        if parameters
    ]
    if groups:
        adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)
        optimizers.append(adamw)
    return optimizers


def save_optimizers(optimizers: list[torch.optim.Optimizer], model: Decoder, path: Path) -> None:
    """Every moment as a tensor named `PARAMETER:ENTRY`, in safetensors."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[parameter]}:{key}": value.detach().cpu().contiguous()
        for optimizer in optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    save_file(tensors, path)


def load_optimizers(optimizers: list[torch.optim.Optimizer], model: Decoder, path: Path) -> None:
    """Put back what `save_optimizers` wrote, by the parameters' names."""
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, entry = key.rsplit(":", 1)
        saved.setdefault(name, {})[entry] = value
    parameters = dict(model.named_parameters())
    mine = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, values in saved.items():
        parameter = parameters[name]
        mine[parameter].state[parameter] = {entry: value.to(parameter.device) for entry, value in values.items()}
