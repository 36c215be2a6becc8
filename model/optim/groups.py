"""Which parameters an optimizer treats how, and the optimizers of a training run.

Weight decay is for matrices and an untied head; embeddings, norms, biases and other vectors have none (OLMo 2, arXiv
2501.00656, section 3.3). With "muon", hidden matrices go to Muon and all else to AdamW.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from model import mup
from model.decoder import Decoder
from model.errors import UserError
from model.files import named
from model.optim.muon import Muon
from model.tensors import load_tensors, save_tensors
from model.train_config import TrainConfig

DECAYED = ("matrix", "router", "head")


def make_optimizers(model: Decoder, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and before it Muon if the config says so.

    The trainer sets each group's `lr` every step: the schedule's, times the group's `lr_scale`.
    """
    roles = model.parameter_roles()
    hidden: dict[float, list[tuple[nn.Parameter, tuple[int, ...] | None]]] = {}
    other: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        role = roles[name]
        if not parameter.requires_grad:
            continue
        if config.optimizer == "muon" and role.kind == "matrix":
            hidden.setdefault(mup.lr_scale(model.config, role, "muon"), []).append((parameter, role.rows))
        else:
            scale = mup.lr_scale(model.config, role, "adamw")
            decay = config.weight_decay / scale if role.kind in DECAYED else 0.0
            other.setdefault((scale, decay), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    for scale, parameters in hidden.items():
        muon = Muon(parameters, lr=config.lr, weight_decay=config.weight_decay / scale)
        muon.param_groups[0]["lr_scale"] = scale
        optimizers.append(muon)
    if other:
        groups = [{"params": ps, "weight_decay": decay, "lr_scale": scale} for (scale, decay), ps in other.items()]
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
    save_tensors(tensors, path)


def load_optimizers(optimizers: list[torch.optim.Optimizer], model: Decoder, path: Path) -> None:
    """Put back what `save_optimizers` wrote, by the parameters' names. Raises UserError for what is another's."""
    saved: dict[str, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    mine = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with named(path):
        for key, value in load_tensors(path).items():
            name, entry = key.rsplit(":", 1)
            if parameters[name] not in mine or value.numel() not in (1, parameters[name].numel()):
                raise UserError(f"{path}: {key} is no state of {name}, as it is trained here.")
            saved.setdefault(name, {})[entry] = value
    for name, values in saved.items():
        parameter = parameters[name]
        mine[parameter].state[parameter] = {entry: value.to(parameter.device) for entry, value in values.items()}
